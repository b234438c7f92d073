/**
 * A kernel of the user's own for `lowrank emulate`: its parameter struct from JSON, its buffers as
 * files, and the text that the runner (cuda/emulator/driver/run_kernel.cpp) takes.
 */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { LowrankError } from '../core/errors.js';
import { Tensor } from '../index.js';
import { largestDifference, type OutputFacts } from './emulate-op.js';

const kTypes = {
  i8: { bytes: 1, array: Int8Array },
  u8: { bytes: 1, array: Uint8Array },
  i16: { bytes: 2, array: Int16Array },
  u16: { bytes: 2, array: Uint16Array },
  i32: { bytes: 4, array: Int32Array },
  u32: { bytes: 4, array: Uint32Array },
  f32: { bytes: 4, array: Float32Array },
  f64: { bytes: 8, array: Float64Array },
  i64: { bytes: 8, array: BigInt64Array },
  u64: { bytes: 8, array: BigUint64Array },
  bf16: { bytes: 2, array: Uint16Array },
  f16: { bytes: 2, array: Uint16Array },
} as const;
/** Types of a buffer's elements; a member by value has all but the 16-bit floats. */
type BufferType = keyof typeof kTypes;
type ScalarType = Exclude<BufferType, 'bf16' | 'f16'>;
const kBufferTypes = Object.keys(kTypes) as BufferType[];
const kScalarTypes = kBufferTypes.filter(
  (type): type is ScalarType => !/16$/.test(type) || /^[iu]/.test(type),
);

/** One member of the parameter struct, in its order. */
export type Param = ScalarParam | BufferParam;
interface ScalarParam {
  readonly name: string;
  readonly scalar: ScalarType;
  readonly value: number;
}
/** A pointer to memory of the device. */
interface BufferParam {
  readonly name: string;
  readonly buffer: BufferType;
  readonly elems: number;
  /** `none` leaves it uninitialised. */
  readonly fill: 'zero' | 'none' | 'normal' | 'index' | { readonly file: string };
  readonly seed: number;
  /** A file with the bytes to be found there afterwards. */
  readonly expect: string | undefined;
  /** The largest difference to that which is no failure. */
  readonly tolerance: number;
  /** Where to write the bytes afterwards. */
  readonly save: string | undefined;
}

export interface LaunchShape {
  readonly grid: readonly [number, number, number];
  readonly threads: number;
  readonly shared: number;
  readonly cluster: number;
}

function wrong(file: string, text: string): LowrankError {
  return new LowrankError('ERR_FILE', `emulate: ${file}: ${text}`);
}

/**
 * Reads the parameters: a JSON array with one object a member, either
 * `{ "name": "n", "i32": 4096 }` or
 * `{ "name": "x", "buffer": "f32", "elems": 4096, "fill": "normal" }`.
 */
export function parseParams(file: string | undefined): Param[] {
  if (file === undefined) return [];
  let json: unknown;
  try {
    json = JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch (error) {
    throw wrong(file, (error as Error).message);
  }
  if (!Array.isArray(json)) throw wrong(file, 'must be an array with one object a member');
  const beside = (name: string) => path.resolve(path.dirname(file), name);
  return json.map((item: unknown, i) => parseParam(file, item, i, beside));
}

function parseParam(
  file: string,
  item: unknown,
  index: number,
  beside: (name: string) => string,
): Param {
  const fields = (typeof item === 'object' && item !== null ? item : {}) as Record<string, unknown>;
  const name = typeof fields.name === 'string' ? fields.name : `member ${index}`;
  const optional = (key: string) =>
    typeof fields[key] === 'string' ? beside(fields[key]) : undefined;
  if (fields.buffer === undefined) {
    const scalar = kScalarTypes.find((type) => type in fields);
    const value = scalar === undefined ? undefined : fields[scalar];
    if (scalar === undefined || typeof value !== 'number') {
      const types = kScalarTypes.join(', ');
      throw wrong(file, `${name} must have a "buffer", or a number under one of ${types}`);
    }
    return { name, scalar, value };
  }
  if (typeof fields.buffer !== 'string' || !Object.hasOwn(kTypes, fields.buffer)) {
    throw wrong(file, `the buffer of ${name} must be one of ${kBufferTypes.join(', ')}`);
  }
  const { elems } = fields;
  if (typeof elems !== 'number' || !Number.isInteger(elems) || elems < 1 || elems > 2 ** 30) {
    throw wrong(file, `"elems" of ${name} must be an integer from 1 to 2^30`);
  }
  const fill = fields.fill ?? 'zero';
  if (typeof fill !== 'string') throw wrong(file, `"fill" of ${name} must be text`);
  const isName = ['zero', 'none', 'normal', 'index'].includes(fill);
  return {
    name,
    buffer: fields.buffer as BufferType,
    elems,
    fill: isName ? (fill as 'zero') : { file: beside(fill) },
    seed: typeof fields.seed === 'number' ? fields.seed : index + 1,
    expect: optional('expect'),
    tolerance: typeof fields.tolerance === 'number' ? fields.tolerance : 0,
    save: optional('save'),
  };
}

/** The bytes that a buffer starts with. */
async function contents(param: BufferParam): Promise<Uint8Array> {
  const { elems, buffer, fill, seed, name } = param;
  const bytes = elems * kTypes[buffer].bytes;
  if (typeof fill === 'object') {
    const given = fs.readFileSync(fill.file);
    if (given.length !== bytes) {
      throw wrong(fill.file, `${name} has ${bytes} bytes, not ${given.length}`);
    }
    return given;
  }
  if (fill === 'zero') return new Uint8Array(bytes);
  const drawn =
    fill === 'index'
      ? Tensor.from(
          Float32Array.from({ length: elems }, (_, i) => i),
          [elems],
          { device: 'cpu' },
        )
      : Tensor.randn([elems], { seed, device: 'cpu' });
  if (buffer === 'f32') return bytesOf(await drawn.read());
  if (buffer === 'bf16' || buffer === 'f16') {
    return bytesOf(await drawn.to({ dtype: buffer }).readBits());
  }
  const values = await drawn.read();
  // Integers of a spread that shows: hundredths.
  const scaled = buffer === 'f64' || fill === 'index' ? values : values.map((v) => 100 * v);
  return bytesOf(encode(buffer, Array.from(scaled)));
}

function bytesOf(values: ArrayBufferView): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** Numbers as a little-endian array of the type, integers rounded. */
function encode(type: ScalarType, values: readonly number[]): ArrayBufferView {
  switch (type) {
    case 'i64':
    case 'u64':
      return BigInt64Array.from(values, (value) => BigInt(Math.round(value)));
    case 'f32':
      return Float32Array.from(values);
    case 'f64':
      return Float64Array.from(values);
    default:
      return kTypes[type].array.from(values.map(Math.round));
  }
}

/** Files for one run of the runner, and how to read what it left. */
export async function prepareKernelRun(
  folder: string,
  library: string,
  kernel: string,
  shape: LaunchShape,
  params: readonly Param[],
): Promise<{ spec: string; outputs: () => OutputFacts[] }> {
  fs.mkdirSync(folder, { recursive: true });
  const lines = [
    `library ${library}`,
    `kernel ${kernel}`,
    `grid ${shape.grid.join(' ')}`,
    `threads ${shape.threads}`,
    `shared ${shape.shared}`,
    `cluster ${shape.cluster}`,
  ];
  const results: { param: BufferParam; file: string }[] = [];
  let offset = 0;
  let alignment = 1;
  const place = (bytes: number) => {
    const at = Math.ceil(offset / bytes) * bytes;
    offset = at + bytes;
    alignment = Math.max(alignment, bytes);
    return at;
  };
  for (const [i, param] of params.entries()) {
    if ('scalar' in param) {
      const bytes = bytesOf(encode(param.scalar, [param.value]));
      lines.push(`value ${place(bytes.length)} ${Buffer.from(bytes).toString('hex')}`);
      continue;
    }
    const bytes = param.elems * kTypes[param.buffer].bytes;
    const input = path.join(folder, `in-${i}`);
    const output = path.join(folder, `out-${i}`);
    if (param.fill !== 'none') fs.writeFileSync(input, await contents(param));
    lines.push(`buffer ${place(8)} ${bytes} ${param.fill === 'none' ? '-' : input} ${output}`);
    results.push({ param, file: output });
  }
  lines.push(`params ${Math.ceil(offset / alignment) * alignment}`);
  const spec = path.join(folder, 'spec');
  fs.writeFileSync(spec, `${lines.join('\n')}\n`);
  return { spec, outputs: () => results.map(({ param, file }) => factsOf(param, file)) };
}

function factsOf(param: BufferParam, file: string): OutputFacts {
  const bytes = fs.readFileSync(file);
  if (param.save !== undefined) fs.writeFileSync(param.save, bytes);
  const found = valuesOf(param.buffer, bytes);
  const facts = {
    name: param.name,
    shape: [param.elems],
    hash: createHash('sha256').update(bytes).digest('hex').slice(0, 16),
    maxValue: largestDifference(found, new Float32Array(found.length)),
  };
  if (param.expect === undefined) return facts;
  const expected = valuesOf(param.buffer, fs.readFileSync(param.expect));
  if (expected.length !== found.length) {
    throw wrong(param.expect, `${param.name} has ${found.length} elements, not ${expected.length}`);
  }
  return { ...facts, maxError: largestDifference(found, expected), limit: param.tolerance };
}

/** What the bytes of a buffer say, as numbers. */
function valuesOf(type: BufferType, bytes: Uint8Array): ArrayLike<number> {
  const whole = new Uint8Array(bytes).buffer; // aligned
  switch (type) {
    case 'bf16':
    case 'f16': {
      const bits = new Uint16Array(whole);
      return Tensor.from(bits, [bits.length], { dtype: type, device: 'cpu' }).readSync();
    }
    case 'i64':
      return Float64Array.from(new BigInt64Array(whole), Number);
    case 'u64':
      return Float64Array.from(new BigUint64Array(whole), Number);
    default:
      return Float64Array.from(new kTypes[type].array(whole));
  }
}
