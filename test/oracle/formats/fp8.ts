/** FP8 weights: a scale for the tensor, for each row, or for each tile. */
import { type OracleDType, roundTo, ulp } from '../dtypes.js';
import { decodeMinifloats, encodeMinifloat, largestOf, type Minifloat } from './minifloat.js';
import { scaled, tileMaxima, tiles } from './scaled.js';
import { type DiskTensor, dim, numbersOf, sizeOf } from './tensors.js';

const f32 = Math.fround;

/** Rows and columns that share a scale; tiles at the lower and right edge may be short. */
export type Tile = readonly [rows: number, columns: number];

/** Without `block`: one scale, or a scale a row, as the number of scales says. */
export function tileOf(weight: DiskTensor, scale: DiskTensor, block?: readonly number[]): Tile {
  if (block !== undefined) return block as unknown as Tile;
  return [sizeOf(scale) === 1 ? dim(weight, 0) : 1, dim(weight, 1)];
}

/** element(code) · scale. The scale multiplies, also where it is named `weight_scale_inv`. */
export function decodeFp8(
  weight: DiskTensor,
  scale: DiskTensor,
  block?: readonly number[],
  element: Minifloat = 'e4m3fn',
): Float32Array {
  const [spanN, spanK] = tileOf(weight, scale, block);
  const K = dim(weight, 1);
  const grid = tiles(numbersOf(scale), Math.ceil(K / spanK), spanN, spanK);
  return scaled(decodeMinifloats(element, weight.bytes), K, grid);
}

/** max|w| / 448 of each tile in the dtype of w; where that is 0, the epsilon of the dtype. */
export function fp8Scales(
  w: ArrayLike<number>,
  K: number,
  [spanN, spanK]: Tile,
  dtype: OracleDType,
): Float64Array {
  return tileMaxima(w, K, spanN, spanK).map((largest) => {
    const scale = roundTo(dtype, f32(largest / largestOf('e4m3fn')));
    return scale === 0 ? ulp(dtype, 1) : scale;
  });
}

/** 2^ceil(log2(max(max|w|, 1e-4) / 448)): scales that are powers of two. */
export function fp8PowerScales(w: ArrayLike<number>, K: number, [spanN, spanK]: Tile) {
  return tileMaxima(w, K, spanN, spanK).map((largest) => {
    const ratio = f32(Math.max(largest, f32(1e-4)) / largestOf('e4m3fn'));
    return 2 ** Math.ceil(Math.log2(ratio));
  });
}

/** Code of w / scale in the dtype of w. */
export function encodeFp8(
  w: ArrayLike<number>,
  K: number,
  [spanN, spanK]: Tile,
  scales: ArrayLike<number>,
  element: Minifloat,
  dtype: OracleDType,
): Uint8Array {
  const scale = tiles(scales, Math.ceil(K / spanK), spanN, spanK);
  return Uint8Array.from(w, (value, i) =>
    encodeMinifloat(element, roundTo(dtype, f32(value / scale(Math.floor(i / K), i % K)))),
  );
}
