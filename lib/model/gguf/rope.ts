/** How a GGUF file says that rotary embeddings are stretched, as `rope_scaling` of `config.json` and back. */

import { type GgufFile, type GgufTensor, ggufToFloat32 } from '../../checkpoint/gguf/gguf.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { RotaryScaling } from '../config/decoder-config.js';
import { rotaryFrequencies } from '../rotary.js';
import { type GgufKeys, shortest } from './keys.js';

/** Tensors that hold divisors of the frequencies, [dims / 2]. */
export const ropeTensors = {
  /** Llama 3.1: for every length. */
  freqs: 'rope_freqs.weight',
  /** Phi-3: for texts beyond the length of the training, and for those within it. */
  long: 'rope_factors_long.weight',
  short: 'rope_factors_short.weight',
} as const;

/** What the reader of the scaling is told of the rotation. */
export interface RopeContext {
  readonly theta: number;
  readonly dims: number;
  readonly contextLength: number;
}

const positive = (value: number): boolean => value > 0;
const kMaxLength = 2 ** 31 - 1;

/**
 * The scaling of a file; undefined where the rotation is as it was trained.
 *
 * - `rope_freqs.weight` is the scaling of Llama 3.1 where parameters of it give the same factors. Otherwise it is `longrope` with one
 *   list for all lengths.
 * - llama.cpp multiplies cos and sin of YaRN by `1 + 0.1 · ln(factor)` times `rope.scaling.attn_factor`.
 *
 * @throws LowrankError `ERR_FILE` · `ERR_UNSUPPORTED`
 */
export function readRopeScaling(
  op: string,
  file: GgufFile,
  keys: GgufKeys,
  context: RopeContext,
): Record<string, unknown> | undefined {
  const type = keys.optionalString('rope.scaling.type') ?? 'linear';
  const atLeastOne = 'a number of at least 1';
  // llama.cpp takes 0 for left out.
  const key = keys.has('rope.scaling.factor') ? 'rope.scaling.factor' : 'rope.scale_linear';
  const factor = keys.optionalNumber(key, atLeastOne, (f) => f === 0 || f >= 1) || 1;
  const original =
    keys.optionalInteger('rope.scaling.original_context_length', 1, kMaxLength) ??
    context.contextLength;
  const attention = keys.optionalNumber('rope.scaling.attn_factor', 'a positive number', positive);
  const lists = readFactors(op, file, context.dims);
  if (!['none', 'linear', 'yarn', 'longrope'].includes(type)) {
    const known = '"none", "linear", "yarn" or "longrope"';
    keys.refuse('rope.scaling.type', known, printable(type), 'ERR_UNSUPPORTED');
  }
  if (type === 'yarn') {
    if (lists !== undefined) {
      const got = `"yarn" beside ${lists.name}`;
      keys.refuse('rope.scaling.type', 'without lists of factors', got, 'ERR_UNSUPPORTED');
    }
    return readYarn(keys, factor, original, attention ?? 1);
  }
  if (lists === undefined) {
    if (type === 'longrope') {
      keys.refuse('rope.scaling.type', `beside ${ropeTensors.long}`, '"longrope" without it');
    }
    if (attention !== undefined && attention !== 1) {
      keys.refuse('rope.scaling.attn_factor', '1 without lists of factors', String(attention));
    }
    return type === 'none' || factor === 1 ? undefined : { rope_type: 'linear', factor };
  }
  const stretched = (list: readonly number[]) => list.map((each) => each * factor);
  const [short, long] = [stretched(lists.short), stretched(lists.long)];
  const one = lists.name === ropeTensors.freqs;
  const recovered = one && (attention ?? 1) === 1 ? llama3Of(short, context) : undefined;
  if (recovered !== undefined) return recovered;
  const length = one ? context.contextLength : original;
  const scale = context.contextLength / length;
  const standard = scale <= 1 ? 1 : Math.sqrt(1 + Math.log(scale) / Math.log(length));
  const own = attention ?? 1;
  return {
    rope_type: 'longrope',
    short_factor: short,
    long_factor: long,
    original_max_position_embeddings: length,
    ...(Math.fround(own) === Math.fround(standard) ? {} : { attention_factor: own }),
  };
}

function readYarn(keys: GgufKeys, factor: number, original: number, attention: number) {
  const beta = (name: string) =>
    keys.optionalNumber(`rope.scaling.yarn_${name}`, 'a positive number', positive);
  const [fast, slow] = [beta('beta_fast'), beta('beta_slow')];
  for (const key of ['rope.scaling.yarn_ext_factor', 'rope.scaling.yarn_attn_factor']) {
    const own = keys.optionalNumber(key, 'a number', () => true);
    if (own !== undefined && own !== 1) keys.refuse(key, '1', String(own), 'ERR_UNSUPPORTED');
  }
  const log = 'rope.scaling.yarn_log_multiplier';
  if ((keys.optionalNumber(log, 'a number', () => true) ?? 0) !== 0) {
    keys.refuse(log, '0', String(keys.raw(log)), 'ERR_UNSUPPORTED');
  }
  const standard = factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1;
  return {
    rope_type: 'yarn',
    factor,
    original_max_position_embeddings: original,
    ...(fast === undefined ? {} : { beta_fast: fast }),
    ...(slow === undefined ? {} : { beta_slow: slow }),
    ...(attention === 1 ? {} : { attention_factor: attention * standard }),
  };
}

/** The lists of divisors of a file. @throws LowrankError `ERR_FILE` */
function readFactors(op: string, file: GgufFile, dims: number) {
  const read = (name: string): readonly number[] | undefined => {
    const info = file.info(name);
    if (info === undefined) return undefined;
    const refuse = (expected: string, got: string): never => {
      const what = `${printable(file.path)}: tensor ${name} must be ${expected}, got ${got}`;
      throw new LowrankError('ERR_FILE', `${op}: ${what}`, { op });
    };
    const half = dims / 2;
    if (info.type !== 'F32' || info.shape.length !== 1 || info.shape[0] !== half) {
      refuse(`F32 [${half}]`, `${info.type} [${info.shape.join(', ')}]`);
    }
    const values = [...ggufToFloat32(file.read(name))];
    const wrong = values.find((value) => !(Number.isFinite(value) && value > 0));
    if (wrong !== undefined) refuse('of positive numbers', String(wrong));
    return values.map(shortest);
  };
  const freqs = read(ropeTensors.freqs);
  if (freqs !== undefined) return { name: ropeTensors.freqs, short: freqs, long: freqs };
  const [long, short] = [read(ropeTensors.long), read(ropeTensors.short)];
  if (long === undefined && short === undefined) return undefined;
  if (long !== undefined && short !== undefined) return { name: ropeTensors.long, short, long };
  const [has, lacks] = long === undefined ? ['short', 'long'] : ['long', 'short'];
  const text = `${printable(file.path)} must hold rope_factors_${lacks}.weight beside rope_factors_${has}.weight`;
  throw new LowrankError('ERR_FILE', `${op}: ${text}, got no such tensor`, { op });
}

/** llama.cpp's converter computes the factors in f32. */
const kNear = 1e-5;

/** The parameters of Llama 3.1 that give these factors, if any do: the original length is a power of two. */
function llama3Of(
  factors: readonly number[],
  { theta, dims, contextLength }: RopeContext,
): Record<string, unknown> | undefined {
  const factor = factors.reduce((most, each) => Math.max(most, each), 0);
  if (factor <= 1 || !factors.includes(1)) return undefined;
  for (let original = 1; original <= contextLength; original *= 2) {
    const scaling: RotaryScaling = {
      type: 'llama3',
      factor,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: original,
    };
    const own = ropeDivisors({ theta, dims, scaling });
    if (!own.every((value, i) => Math.abs(value / (factors[i] as number) - 1) < kNear)) continue;
    return {
      rope_type: 'llama3',
      factor,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: original,
    };
  }
  return undefined;
}

/** By what a scaling divides the frequencies, [dims / 2]. */
export function ropeDivisors(rotary: {
  readonly theta: number;
  readonly dims: number;
  readonly scaling: RotaryScaling;
}): Float64Array<ArrayBuffer> {
  const scaled = rotaryFrequencies(rotary, 1);
  const plain = rotaryFrequencies({ ...rotary, scaling: { type: 'default' } }, 1);
  return plain.map((frequency, i) => frequency / (scaled[i] as number));
}

/** A list of divisors as a tensor. */
export function factorTensor(values: ArrayLike<number>): GgufTensor {
  const data = Float32Array.from(values);
  return { type: 'F32', shape: [data.length], data: new Uint8Array(data.buffer) };
}
