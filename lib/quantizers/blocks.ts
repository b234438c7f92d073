/** Blocks that run over a flattened weight: codes of the nearest level, and planes of their scales. */

import type { PlaneValues, ScalePlane } from '../checkpoint/planar/planar-weight.js';
import { formatCodebook } from '../quant/codebook.js';

/** Number of blocks whose scales share a factor, as in bitsandbytes' double quantisation. */
const kNested = 256;

/** The index of the ascending level nearest to v; a tie takes the lower one. */
export function nearestLevel(levels: ArrayLike<number>, v: number): number {
  let [low, high] = [0, levels.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    const bound = ((levels[middle] as number) + (levels[middle + 1] as number)) / 2;
    if (bound < v) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A block of a weight. */
export interface BlockRange {
  readonly begin: number;
  readonly end: number;
}

/** Calls `visit` with each block of `blocksize` elements; the last may be shorter. */
export function eachBlock(
  length: number,
  blocksize: number,
  visit: (range: BlockRange, block: number) => void,
): void {
  for (let begin = 0, block = 0; begin < length; begin += blocksize, block++) {
    visit({ begin, end: Math.min(begin + blocksize, length) }, block);
  }
}

/** The largest magnitude of a block less `shift`. */
export function absmaxOf(values: Float32Array, { begin, end }: BlockRange, shift = 0): number {
  let most = 0;
  for (let i = begin; i < end; i++) {
    most = Math.max(most, Math.abs(Math.fround((values[i] as number) - shift)));
  }
  return most;
}

/**
 * Numbers of blocks as bytes of the dynamic map, times the largest of each 256 (bitsandbytes' double quantisation), less their
 * mean where `centred`.
 */
export function nestedPlane(numbers: Float32Array, centred: boolean): ScalePlane {
  const table = formatCodebook('quantize', 'int8');
  const mean = centred ? numbers.reduce((sum, v) => sum + v, 0) / numbers.length : 0;
  const offset = Math.fround(mean);
  const data = new Uint8Array(numbers.length);
  const outer = new Float32Array(Math.ceil(numbers.length / kNested));
  eachBlock(numbers.length, kNested, (range, group) => {
    const most = absmaxOf(numbers, range, offset);
    outer[group] = most;
    for (let i = range.begin; i < range.end; i++) {
      data[i] = nearestLevel(table, most === 0 ? 0 : ((numbers[i] as number) - offset) / most);
    }
  });
  const values: PlaneValues = { dtype: 'u8', data, table };
  return {
    values,
    outer: { values: { dtype: 'f32', data: outer }, span: kNested },
    ...(centred ? { offset } : {}),
  };
}

/** Numbers of blocks as they are. */
export const plainPlane = (data: Float32Array): ScalePlane => ({ values: { dtype: 'f32', data } });

/**
 * Codes of the level nearest to `(value − shift) / scale`, block by block; a block with a scale of 0 has those of 0.
 * @param scales of blocks, as they are stored
 * @param minima of blocks, as they are stored: shifts with the sign turned; none for 0
 */
export function encodeBlocks(
  values: Float32Array,
  blocksize: number,
  levels: Float32Array,
  scales: Float32Array,
  minima?: Float32Array,
): Uint8Array {
  const codes = new Uint8Array(values.length);
  eachBlock(values.length, blocksize, ({ begin, end }, block) => {
    const [scale, shift] = [scales[block] as number, -(minima?.[block] ?? 0)];
    for (let i = begin; i < end; i++) {
      codes[i] = nearestLevel(levels, scale === 0 ? 0 : ((values[i] as number) - shift) / scale);
    }
  });
  return codes;
}
