/** GGUF blocks by plain rounding, as ggml makes them without an importance matrix. */
import { encodeBits } from '../dtypes.js';
import { packParts } from './bits.js';
import { ggufBlock } from './gguf.js';
import { levelsOf } from './minifloat.js';
import { mxScale } from './mx.js';

const f32 = Math.fround;

/** f16 in two bytes. */
const half = (value: number): number[] => {
  const bits = encodeBits('f16', value);
  return [bits % 256, Math.floor(bits / 256)];
};

const inverse = (d: number): number => (d === 0 ? 0 : f32(1 / d));

/** The value of the largest magnitude, the first one of equal ones. */
function extreme(w: Float32Array): number {
  let found = 0;
  for (const value of w) if (Math.abs(value) > Math.abs(found)) found = value;
  return found;
}

/** Half away from zero, as C rounds. */
const roundAway = (value: number): number => Math.sign(value) * Math.floor(Math.abs(value) + 0.5);

const nibbles = (codes: readonly number[]): Uint8Array =>
  packParts(
    codes.map((code) => code % 16),
    4,
    16,
  );

/** Bytes of the codes of 4 or 5 bits: the fifth bits come first. */
const codeBytes = (codes: readonly number[], bits: number): number[] => [
  ...(bits === 5
    ? packParts(
        codes.map((code) => Math.floor(code / 16)),
        1,
        1,
      )
    : []),
  ...nibbles(codes),
];

/** d · (q - 2^(bits-1)): the value of the largest magnitude becomes the lowest code. */
const symmetric = (bits: number) => (w: Float32Array) => {
  const zero = 2 ** (bits - 1);
  const d = f32(extreme(w) / -zero);
  const id = inverse(d);
  const code = (x: number): number =>
    Math.min(2 * zero - 1, Math.trunc(f32(f32(x * id) + (zero + 0.5))));
  return [...half(d), ...codeBytes(Array.from(w, code), bits)];
};

/** d · q + m from the least to the largest value. */
const asymmetric = (bits: number) => (w: Float32Array) => {
  const least = Math.min(...w);
  const top = 2 ** bits - 1;
  const d = f32(f32(Math.max(...w) - least) / top);
  const id = inverse(d);
  const code = (x: number): number =>
    Math.min(top, Math.trunc(f32(f32(f32(x - least) * id) + 0.5)));
  return [...half(d), ...half(least), ...codeBytes(Array.from(w, code), bits)];
};

/** Codes by the first nearest level of ggml's table, in which 0 comes once with each sign. */
function nearestE2m1(value: number, scale: number): number {
  let best = 0;
  const error = (code: number): number =>
    Math.abs(f32(f32((levelsOf('e2m1')[code] as number) * scale) - value));
  for (let code = 1; code < 16; code++) if (error(code) < error(best)) best = code;
  return best;
}

const ENCODERS: Readonly<Record<string, (w: Float32Array) => ArrayLike<number>>> = {
  Q4_0: symmetric(4),
  Q4_1: asymmetric(4),
  Q5_0: symmetric(5),
  Q5_1: asymmetric(5),
  Q8_0: (w) => {
    const d = f32(Math.abs(extreme(w)) / 127);
    const id = inverse(d);
    return [...half(d), ...Uint8Array.from(w, (x) => roundAway(f32(x * id)))];
  },
  MXFP4: (w) => {
    const byte = mxScale('FLOOR', Math.abs(extreme(w)), 'e2m1');
    return [byte, ...nibbles(Array.from(w, (x) => nearestE2m1(x, 2 ** (byte - 127))))];
  },
  TQ2_0: (w) => {
    const d = Math.abs(extreme(w));
    const id = inverse(d);
    const codes = Array.from(w, (x) => roundAway(f32(x * id)) + 1);
    return [...packParts(codes, 2, 32), ...half(d)];
  },
};

export function encodeGguf(type: string, w: ArrayLike<number>): Uint8Array {
  const { elements, bytes } = ggufBlock(type);
  const encode = ENCODERS[type];
  if (encode === undefined) throw new Error(`oracle: ${type} is not made by plain rounding`);
  const count = w.length / elements;
  const out = new Uint8Array(count * bytes);
  const values = Float32Array.from(w);
  for (let i = 0; i < count; i++) {
    out.set(encode(values.subarray(i * elements, (i + 1) * elements)), i * bytes);
  }
  return out;
}
