/** What the quantisers of families share: where a block's numbers go, and importances. */

/** Views of one block of all parts; a type leaves out what it does not have. */
export interface BlockTarget {
  /** [elements] */
  readonly codes: Uint8Array;
  /** [groups] */
  readonly scales: Uint8Array;
  readonly mins: Uint8Array;
  /** [1], bits of f16: the block's scale, and its minimum. */
  readonly half: Uint16Array;
  readonly minHalf: Uint16Array;
}

/**
 * Quantises one block.
 * @param x its weights, all finite
 * @param p their importances, none of a group all 0; absent if all weigh the same
 */
export type BlockQuantizer = (
  x: Float32Array,
  p: Float32Array | undefined,
  target: BlockTarget,
) => void;

const kOnes = new Float32Array(256).fill(1);

/** The importances of elements `from` to `to`. */
export const importances = (p: Float32Array | undefined, from: number, to: number): Float32Array =>
  p === undefined ? kOnes.subarray(0, to - from) : p.subarray(from, to);

/** 1 / d, or 0 where that is not a number to multiply by: the f16 of such a d is 0 as well. */
export function inverseOf(d: number): number {
  const inverse = Math.fround(1 / d);
  return Number.isFinite(inverse) ? inverse : 0;
}
