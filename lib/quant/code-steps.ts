/** What one step of a weight's integer codes is. */

import { entryValues, numbersOf } from '../checkpoint/planar/decode.js';
import type { PlanarWeight, ScalePlane, ZeroPlane } from '../checkpoint/planar/planar-weight.js';
import { fail } from '../core/errors.js';
import { QuantizedWeight } from './quantized-weight.js';

/** Integer codes of a weight [N, K] whose values grow by a step from code to code. */
export interface CodeSteps {
  /** [N · K], from 0 on. */
  readonly codes: Uint8Array;
  /** The largest code. */
  readonly top: number;
  /** Elements of a group of a row. */
  readonly groupSize: number;
  /** [N · K / groupSize]: the step of each group. */
  readonly scales: Float32Array;
}

/** Groups of a row with one entry each. @throws ERR_UNSUPPORTED */
function groupOfGrid(op: string, { grid, columns }: PlanarWeight): number {
  const size = grid.kind === 'flat' ? grid.span : grid.kind === 'tiles' ? grid.columns : 0;
  const own = Math.min(size, columns);
  const rows = grid.kind === 'tiles' ? grid.rows === 1 : columns % own === 0;
  if (own > 0 && rows && columns % own === 0) return own;
  return fail(
    'ERR_UNSUPPORTED',
    op,
    'w',
    'of groups that divide its rows',
    `a grid of ${grid.kind}`,
  );
}

/** The steps of planes. @throws ERR_UNSUPPORTED for levels that are not one apart, or other grids */
function stepsOfPlanes(op: string, weight: PlanarWeight): CodeSteps {
  const { levels, codes, bits, scale } = weight;
  const line = levels.every((level, code) => level === (levels[0] as number) + code);
  if (!line) fail('ERR_UNSUPPORTED', op, 'w', 'of integer codes', 'other levels');
  const groupSize = groupOfGrid(op, weight);
  return { codes, top: 2 ** bits - 1, groupSize, scales: entryValues(scale) };
}

/**
 * The steps of a weight of integers: int4, or planes whose levels are one apart.
 * @throws ERR_UNSUPPORTED for others · ERR_DISPOSED
 */
export function codeStepsOf(op: string, w: QuantizedWeight): CodeSteps {
  if (w.format === 'planar') return stepsOfPlanes(op, QuantizedWeight.planesOf(w, op));
  const { codes, scales, blocksize } = QuantizedWeight.groupAffineOf(w, op);
  return { codes, top: 15, groupSize: blocksize, scales };
}

const plainPlane = (data: Float32Array): ScalePlane => ({ values: { dtype: 'f32', data } });

/**
 * A weight of integers with other codes, and with `shifts` steps more in each group: nothing is rounded but the sum of a
 * zero-point and its shift.
 * @param codes [N · K]
 * @param shifts [N · K / groupSize], in steps
 */
export function withCodes(
  op: string,
  w: QuantizedWeight,
  codes: Uint8Array,
  shifts: Float32Array,
): QuantizedWeight {
  const { device, sourceDType } = w;
  if (w.format !== 'planar') {
    const state = QuantizedWeight.groupAffineOf(w, op);
    const zeros = state.zeros.map((zero, g) => zero - (shifts[g] as number));
    return QuantizedWeight.fromGroupAffine({ ...state, codes, zeros }, { device, sourceDType });
  }
  const planes = QuantizedWeight.planesOf(w, op);
  const { zero, min, scale, ...rest } = planes;
  if (min !== undefined) {
    const steps = entryValues(scale);
    const mins = entryValues(min).map((m, g) => m - (steps[g] as number) * (shifts[g] as number));
    return QuantizedWeight.fromPlanes(
      { ...rest, scale, codes, min: plainPlane(mins) },
      { device, sourceDType },
    );
  }
  const before = zero === undefined ? new Float32Array(shifts.length) : numbersOf(zero);
  const zeros: ZeroPlane = {
    dtype: 'f32',
    data: before.map((value, g) => value - (shifts[g] as number)),
  };
  return QuantizedWeight.fromPlanes(
    { ...rest, scale, codes, zero: zeros },
    { device, sourceDType },
  );
}
