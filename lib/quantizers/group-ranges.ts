/** Groups of a row and the ranges of their values. */

import { fail } from '../core/errors.js';

/** Steps and integer zero-points of groups: `w ≈ scale · (code − zero)`. */
export interface GroupGrid {
  /** [N · K / groupSize] */
  readonly scale: Float32Array;
  readonly zero: Uint8Array;
}

/** Number of groups of a row. @throws ERR_SHAPE if they do not divide it */
export function groupsOf(op: string, K: number, groupSize: number): number {
  if (K % groupSize === 0) return K / groupSize;
  const expected = `a divisor of the ${K} features of a row`;
  return fail('ERR_SHAPE', op, 'groupSize', expected, String(groupSize));
}

/** Steps that reach from the smallest to the largest value of each group and 0. A group of zeros has a step of 1. */
export function rangeGrid(values: Float32Array, groupSize: number, bits: number): GroupGrid {
  const top = 2 ** bits - 1;
  const groups = values.length / groupSize;
  const [scale, zero] = [new Float32Array(groups), new Uint8Array(groups)];
  for (let g = 0; g < groups; g++) {
    let [least, most] = [0, 0];
    for (let i = g * groupSize; i < (g + 1) * groupSize; i++) {
      least = Math.min(least, values[i] as number);
      most = Math.max(most, values[i] as number);
    }
    scale[g] = (most - least) / top || 1;
    zero[g] = Math.min(top, Math.round(-least / (scale[g] as number)));
  }
  return { scale, zero };
}
