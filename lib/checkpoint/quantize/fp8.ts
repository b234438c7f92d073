/** FP8 with scales for the tensor, for rows or for tiles, as compressed-tensors and DeepSeek make them. */
import type { PlanarWeight } from '../planar/planar-weight.js';
import { type Element, e4m3, e5m2 } from './minifloat.js';
import {
  encodeTiles,
  epsilonOf,
  planeOf,
  roundTo,
  type Source,
  type Tiles,
  tileMaxima,
} from './source.js';

export type Fp8Format = 'fp8-e4m3' | 'fp8-e5m2';

export const fp8Elements: Readonly<Record<Fp8Format, Element>> = {
  'fp8-e4m3': e4m3,
  'fp8-e5m2': e5m2,
};

const f32 = Math.fround;
/** DeepSeek's least magnitude of a tile. */
const kLeastMagnitude = f32(1e-4);

/**
 * `scale = max|w| / largest` and `code = w / scale`, each rounded to the dtype of w; the epsilon of the dtype where the scale is
 * 0. With `powers`, in f32: the least power of two not below `max(max|w|, 1e-4) / largest`.
 */
export function quantizeFp8(
  source: Source,
  { bits, levels, largest, encode }: Element,
  grid: Tiles,
  powers: boolean,
): PlanarWeight {
  const { rows, columns } = source;
  const dtype = powers ? 'F32' : source.dtype;
  const round = roundTo[dtype];
  const scales = tileMaxima(source, grid).map((most) =>
    powers
      ? 2 ** Math.ceil(f32(Math.log2(f32(Math.max(most, kLeastMagnitude) / largest))))
      : round(f32(most / largest)) || epsilonOf[dtype],
  );
  const codes = encodeTiles(source, grid, (value, tile) =>
    encode(round(f32(value / (scales[tile] as number)))),
  );
  return { rows, columns, bits, codes, levels, grid, scale: { values: planeOf(dtype, scales) } };
}
