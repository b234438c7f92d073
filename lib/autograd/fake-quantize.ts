import { fail } from '../core/errors.js';
import { readOptions } from '../core/validate.js';
import {
  type ClippedBy,
  type GridCodes,
  type GridGradients,
  gridBackward,
  roundToGrid,
  type UniformGrid,
} from '../ops/quantizers/uniform-grid.js';
import { checkStep, type Value } from './gradient-tape.js';
import type { Tape } from './tape.js';

/** The grid of {@link fakeQuantize}. */
export interface FakeQuantizeOptions extends GridCodes {
  /** [N, G] f32, positive: the step of each of the G groups of a row of w. A step of 0 gives NaN. */
  readonly scale: Value;
  /** [N, G] f32, in units of w; default 0. `−zero · scale` for zero-points in steps of a code. */
  readonly offset?: Value;
  /**
   * Which elements are clipped in the backward pass. `value`, the default, as in LSQ: those whose `(w − offset) / scale` is at
   * an end of the codes or beyond. `code`: those whose rounded code is beyond an end.
   */
  readonly clippedBy?: ClippedBy;
}

/**
 * A weight rounded to a grid, with straight-through gradients for the weight, the steps and the offsets (Esser et al., Learned
 * Step Size Quantization, 2019, arXiv:1902.08153; the offsets as in Bhalgat et al., LSQ+, 2020, arXiv:2004.09576):
 *
 *   v = (w − offset) / scale,  code = round(clip(v)),  y = scale · code + offset
 *
 * For an element on the grid `∂y/∂w = 1`, `∂y/∂scale = code − v`, `∂y/∂offset = 0`; for a clipped one 0, `code` and 1. Ties
 * round to the even code. {@link freezeGrid} makes a weight of the result.
 * @param w [N, K]
 * @returns y [N, K] f32
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_VALUE · ERR_DISPOSED · ERR_OOM
 * @example
 * const y = fakeQuantize(t, t.variable(w), { bits: 3, scale: t.variable(scale) });
 */
export function fakeQuantize(t: Tape, w: Value, options: FakeQuantizeOptions): Value {
  const op = 'fakeQuantize';
  checkStep(op, t, { w });
  const known = { bits: true, first: true, scale: true, offset: true, clippedBy: true } as const;
  const { bits, first, scale, offset, clippedBy = 'value' } = readOptions(op, options, known);
  if (bits === undefined || scale === undefined) {
    const missing = bits === undefined ? 'bits' : 'scale';
    return fail('ERR_VALUE', op, missing, 'given', 'none');
  }
  checkStep(op, t, { scale, ...(offset === undefined ? {} : { offset }) });
  if (clippedBy !== 'value' && clippedBy !== 'code') {
    fail('ERR_VALUE', op, 'clippedBy', 'value or code', JSON.stringify(clippedBy));
  }
  const grid: UniformGrid = {
    bits,
    scale: scale.tensor,
    ...(first === undefined ? {} : { first }),
    ...(offset === undefined ? {} : { offset: offset.tensor }),
  };
  const { values, codes } = roundToGrid(op, w.tensor, grid);
  codes.dispose();
  const inputs = offset === undefined ? [w, scale] : [w, scale, offset];
  return t.record(
    values,
    inputs,
    inputs.map(({ tensor }) => tensor),
    (dy, pass) => {
      const wanted: readonly (readonly [keyof GridGradients, Value | undefined])[] = [
        ['dw', w],
        ['dScale', scale],
        ['dOffset', offset],
      ];
      const needs = wanted.flatMap(([name, value]) =>
        value !== undefined && pass.wants(value) ? [name] : [],
      );
      const found = gridBackward(dy, w.tensor, grid, { clippedBy, needs });
      for (const [name, value] of wanted) {
        const gradient = found[name];
        if (value !== undefined && gradient !== undefined) pass.give(value, gradient);
      }
    },
  );
}
