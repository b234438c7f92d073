import { fail } from '../core/errors.js';
import { readOptions } from '../core/validate.js';
import { type LevelGrid, levelsBackward, roundToLevels } from '../ops/quantizers/level-grid.js';
import { checkStep, type Value } from './gradient-tape.js';
import type { Tape } from './tape.js';

/** The levels of {@link fakeQuantizeLevels}. */
export interface FakeQuantizeLevelsOptions {
  /** [1, n] f32 for all rows of w, or [N, n] for each, with n from 2 to 256, in any order. */
  readonly levels: Value;
  /** [N, G] f32, positive: the scale of each of the G groups of a row of w; default 1. */
  readonly scale?: Value;
}

/**
 * A weight rounded to levels, with straight-through gradients for the weight, the levels and the scales: `y = scale · level` of the
 * level nearest to v = w / scale. For an element between the outermost levels `∂y/∂w = 1` and `∂y/∂scale = level − v`, for another 0 and
 * `level`; its level has `∂y/∂level = scale`. A tie takes the lower level. It computes on the host, and so waits for the device and
 * cannot be captured. {@link freezeLevels} makes a weight of the result.
 * @param w [N, K]
 * @returns y [N, K] f32
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_VALUE · ERR_DISPOSED · ERR_OOM
 * @example
 * const y = fakeQuantizeLevels(t, t.constant(w), { levels: t.variable(levels), scale: t.constant(absmax) });
 */
export function fakeQuantizeLevels(t: Tape, w: Value, options: FakeQuantizeLevelsOptions): Value {
  const op = 'fakeQuantizeLevels';
  checkStep(op, t, { w });
  const { levels, scale } = readOptions(op, options, { levels: true, scale: true });
  if (levels === undefined) return fail('ERR_VALUE', op, 'levels', 'given', 'none');
  checkStep(op, t, { levels, ...(scale === undefined ? {} : { scale }) });
  const grid: LevelGrid = {
    levels: levels.tensor,
    ...(scale === undefined ? {} : { scale: scale.tensor }),
  };
  const inputs = scale === undefined ? [w, levels] : [w, levels, scale];
  const keeps = inputs.map(({ tensor }) => tensor);
  return t.record(roundToLevels(op, w.tensor, grid), inputs, keeps, (dy, pass) => {
    const { dw, dLevels, dScale } = levelsBackward(dy, w.tensor, grid);
    pass.give(w, dw);
    pass.give(levels, dLevels);
    if (scale !== undefined && dScale !== undefined) pass.give(scale, dScale);
  });
}
