/** Integers of 2 to 8 bits by plain rounding, with the scales of compressed-tensors or in f16 as GPTQ and AWQ have them. */
import { integerLevels } from '../planar/levels.js';
import type { PlanarWeight } from '../planar/planar-weight.js';
import {
  encodeTiles,
  epsilonOf,
  planeOf,
  roundTo,
  type Source,
  type SourceDType,
  type Tiles,
  tileMaxima,
  tileRanges,
} from './source.js';

export interface IntegerRounding {
  readonly bits: number;
  readonly grid: Tiles;
  /** Codes around half of their range, without zero-points. */
  readonly symmetric: boolean;
  /** Whether zero-points stand in a plane also where they are all the same. */
  readonly zeroPlane: boolean;
  /** The dtype of scales; that of w where absent, in which all operations then are rounded. */
  readonly scaleDType?: SourceDType;
}

const f32 = Math.fround;
/** Adding it leaves the integer part of a small double of either sign, rounded to nearest even. */
const kInteger = 1.5 * 2 ** 52;
const roundEven = (value: number): number => value + kInteger - kInteger;
const clamp = (value: number, least: number, most: number): number =>
  Math.min(Math.max(value, least), most);

/**
 * Symmetric: `scale = max|w| / ((2^bits − 1) / 2)`, otherwise `(max − min) / (2^bits − 1)` over w and 0 with
 * `zero = −min / scale`. `code = w / scale + zero`, to the nearest even integer of the range. Scales of 0 become the epsilon of
 * their dtype.
 */
export function quantizeIntegers(source: Source, how: IntegerRounding): PlanarWeight {
  const { rows, columns } = source;
  const { bits, grid, symmetric, zeroPlane } = how;
  const scaleDType = how.scaleDType ?? source.dtype;
  const round = how.scaleDType === undefined ? roundTo[source.dtype] : f32;
  const [top, half] = [2 ** bits - 1, 2 ** (bits - 1)];
  const scaleOf = (value: number): number =>
    roundTo[scaleDType](round(f32(value))) || epsilonOf[scaleDType];
  let scales: Float32Array;
  let zeros: Float32Array | undefined;
  if (symmetric) {
    scales = tileMaxima(source, grid).map((most) => scaleOf(most / (top / 2)));
  } else {
    const { least, most } = tileRanges(source, grid);
    scales = most.map((high, tile) => scaleOf(round(high - (least[tile] as number)) / top));
    // Signed, as compressed-tensors computes them.
    zeros = least.map((low, tile) => {
      const steps = round(f32(low / (scales[tile] as number)));
      return roundEven(clamp(round(-half - steps), -half, half - 1));
    });
  }
  const codes = encodeTiles(source, grid, (value, tile) => {
    const steps = round(f32(value / (scales[tile] as number)));
    const shifted = zeros === undefined ? steps : round(f32(steps + (zeros[tile] as number)));
    return clamp(roundEven(shifted), -half, half - 1) + half;
  });
  const plane = zeroPlane || !symmetric;
  const data = Uint8Array.from(scales, (_, tile) => (zeros?.[tile] ?? 0) + half);
  return {
    rows,
    columns,
    bits,
    codes,
    levels: integerLevels(bits, plane ? 0 : half),
    grid,
    scale: { values: planeOf(scaleDType, scales) },
    ...(plane ? { zero: { dtype: 'u8', data } as const } : {}),
  };
}
