/**
 * A user's own kernel for `lowrank emulate`: its buffers as files, and the text that the runner
 * (cuda/emulator/driver/run_kernel.cpp) reads.
 */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { Tensor } from '../../index.js';
import { writeOutputFile } from '../command/output-file.js';
import { largestDifference, type OutputFacts } from './emulate-op.js';
import {
  type BufferParam,
  type BufferType,
  kTypes,
  type Param,
  type ScalarType,
} from './emulate-params.js';

export interface LaunchShape {
  readonly grid: readonly [number, number, number];
  readonly threads: number;
  readonly shared: number;
  readonly cluster: number;
}

/** The initial bytes of a buffer. */
async function contents(param: BufferParam): Promise<Uint8Array> {
  const { elems, buffer, fill, seed } = param;
  if (typeof fill === 'object') return fs.readFileSync(fill.file);
  if (fill === 'zero') return new Uint8Array(elems * kTypes[buffer].bytes);
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
  // Integers with a visible spread: hundredths.
  const scaled = buffer === 'f64' || fill === 'index' ? values : values.map((v) => 100 * v);
  return bytesOf(encode(buffer, Array.from(scaled)));
}

function bytesOf(values: ArrayBufferView): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** Numbers as a little-endian array of the type, integers rounded. */
function encode(type: ScalarType, values: readonly (number | bigint)[]): ArrayBufferView {
  switch (type) {
    case 'i64':
    case 'u64':
      return BigInt64Array.from(values, (value) =>
        typeof value === 'bigint' ? value : BigInt(Math.round(value)),
      );
    case 'f32':
      return Float32Array.from(values, Number);
    case 'f64':
      return Float64Array.from(values, Number);
    default:
      return kTypes[type].array.from(values.map((value) => Math.round(Number(value))));
  }
}

/**
 * Makes files for one run of the runner, and a function that reads the results. The runner gets file
 * names without a folder, because a folder may have spaces in its name. It must run in that folder.
 */
export async function prepareKernelRun(
  folder: string,
  library: string,
  kernel: string,
  shape: LaunchShape,
  params: readonly Param[],
): Promise<{ spec: string; outputs: () => OutputFacts[] }> {
  fs.mkdirSync(folder, { recursive: true });
  const lines = [
    `library ${path.resolve(library)}`,
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
    const [input, output] = [`in-${i}`, `out-${i}`];
    if (param.fill !== 'none') fs.writeFileSync(path.join(folder, input), await contents(param));
    lines.push(`buffer ${place(8)} ${bytes} ${param.fill === 'none' ? '-' : input} ${output}`);
    results.push({ param, file: path.join(folder, output) });
  }
  lines.push(`params ${Math.ceil(offset / alignment) * alignment}`);
  const spec = path.join(folder, 'spec');
  fs.writeFileSync(spec, `${lines.join('\n')}\n`);
  return { spec, outputs: () => results.map(({ param, file }) => factsOf(param, file)) };
}

function factsOf(param: BufferParam, file: string): OutputFacts {
  const bytes = fs.readFileSync(file);
  if (param.save !== undefined) writeOutputFile('emulate', param.save, bytes);
  const found = valuesOf(param.buffer, bytes);
  const facts = {
    name: param.name,
    shape: [param.elems],
    hash: createHash('sha256').update(bytes).digest('hex').slice(0, 16),
    maxValue: largestDifference(found, new Float32Array(found.length)),
  };
  if (param.expect === undefined) return facts;
  const expected = valuesOf(param.buffer, fs.readFileSync(param.expect));
  return { ...facts, maxError: largestDifference(found, expected), limit: param.tolerance };
}

/** The bytes of a buffer as numbers. */
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
