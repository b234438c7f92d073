/** Microscaling formats: blocks of 32 that share a power of two. */
import { packParts, unpackStream } from './bits.js';
import {
  decodeMinifloats,
  e8m0,
  encodeMinifloat,
  largestOf,
  type Minifloat,
  mantissaBitsOf,
} from './minifloat.js';
import { scaled, tileMaxima, tiles } from './scaled.js';
import { type DiskTensor, dim } from './tensors.js';

const f32 = Math.fround;
const BLOCK = 32;

/**
 * element(code) · 2^(E - 127). Codes of 4 bits are two a byte, the first in the low nibble; wider
 * ones a byte each. Dimensions before the last (experts, groups of 16 bytes) are rows.
 */
export function decodeMx(codes: DiskTensor, scales: DiskTensor, element: Minifloat): Float32Array {
  const { bytes } = codes;
  const pitch = dim(scales, -1);
  const K = pitch * BLOCK;
  const unpacked = element === 'e2m1' ? unpackStream(bytes, 1, 4, 2 * bytes.length) : bytes;
  const grid = tiles(Float64Array.from(scales.bytes, e8m0), pitch, 1, BLOCK);
  return scaled(decodeMinifloats(element, unpacked), K, grid);
}

/** How a power of two is chosen for the largest magnitude of a block. */
export type ScaleRule = 'FLOOR' | 'RCEIL' | 'EVEN';

const floorLog2 = (value: number): number => {
  const exponent = Math.floor(Math.log2(value));
  return 2 ** exponent > value
    ? exponent - 1
    : 2 ** (exponent + 1) <= value
      ? exponent + 1
      : exponent;
};

/** The least exponent whose power of two is not below a value. */
const ceilLog2 = (value: number): number => {
  const exponent = floorLog2(value);
  return 2 ** exponent === value ? exponent : exponent + 1;
};

/** `value` with a mantissa of `bits` bits: half a unit added, the rest cut off. */
function cutMantissa(value: number, bits: number): number {
  const unit = 2 ** (floorLog2(value) - bits);
  return Math.floor(value / unit + 0.5) * unit;
}

/** Byte of the scale: 255 where the block is not finite, 0 at least. */
export function mxScale(rule: ScaleRule, largest: number, element: Minifloat): number {
  if (!Number.isFinite(largest)) return 255;
  if (largest === 0) return 0;
  const range = largestOf(element);
  const exponentOf: Readonly<Record<ScaleRule, () => number>> = {
    FLOOR: () => floorLog2(largest) - floorLog2(range),
    EVEN: () => floorLog2(cutMantissa(largest, mantissaBitsOf(element))) - floorLog2(range),
    RCEIL: () => ceilLog2(f32(largest / range)),
  };
  return Math.max(0, exponentOf[rule]() + 127);
}

export function mxScales(
  rule: ScaleRule,
  w: ArrayLike<number>,
  K: number,
  element: Minifloat,
): Uint8Array {
  return Uint8Array.from(tileMaxima(w, K, 1, BLOCK), (max) => mxScale(rule, max, element));
}

/** Code of w · 2^(127 - E), packed as {@link decodeMx} has it. */
export function encodeMx(
  w: ArrayLike<number>,
  scales: ArrayLike<number>,
  element: Minifloat,
): Uint8Array {
  const codes = Uint8Array.from(w, (value, i) =>
    encodeMinifloat(element, value / e8m0(scales[Math.floor(i / BLOCK)] as number)),
  );
  return element === 'e2m1' ? packParts(codes, 4, 1) : codes;
}
