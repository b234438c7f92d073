import { entryValues } from '../checkpoint/planar/decode.js';
import type { PlanarWeight } from '../checkpoint/planar/planar-weight.js';
import { absmaxOf, eachBlock, encodeBlocks, nestedPlane, plainPlane } from './blocks.js';
import { normalFloatLevels } from './normal-float.js';

/** How {@link quantizeNormalFloat} works. */
export interface NormalFloatOptions {
  /** Bits of a code, 2 to 8. */
  readonly bits: number;
  /** Elements of a block. */
  readonly blocksize: number;
  /** Are scales stored as bytes? */
  readonly doubleQuant: boolean;
}

/** Bits that a weight takes, those of its scales included. */
export function normalFloatBits(elements: number, how: NormalFloatOptions): number {
  const { bits, blocksize, doubleQuant } = how;
  const blocks = Math.ceil(elements / blocksize);
  return (
    elements * bits +
    blocks * (doubleQuant ? 8 : 32) +
    (doubleQuant ? Math.ceil(blocks / 256) * 32 : 0)
  );
}

/**
 * Blocks of NormalFloat codes of any number of bits, `w ≈ absmax · level`. A code is the nearest level to the value over the
 * scale as it is stored.
 * @param values [N, K], row by row, all finite
 */
export function quantizeNormalFloat(
  values: Float32Array,
  rows: number,
  columns: number,
  { bits, blocksize, doubleQuant }: NormalFloatOptions,
): PlanarWeight {
  const levels = normalFloatLevels(bits);
  const absmax = new Float32Array(Math.ceil(values.length / blocksize));
  eachBlock(values.length, blocksize, (range, block) => {
    absmax[block] = absmaxOf(values, range);
  });
  const scale = doubleQuant ? nestedPlane(absmax, true) : plainPlane(absmax);
  const codes = encodeBlocks(values, blocksize, levels, entryValues(scale));
  return { rows, columns, bits, codes, levels, grid: { kind: 'flat', span: blocksize }, scale };
}
