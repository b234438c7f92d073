import { readOptions } from '../../core/validate.js';
import { rmsNormBackward, rmsNormForward } from '../../ops/model/rms-norm.js';
import { checkStep, type GradientTape, type Value } from '../gradient-tape.js';

/** How a norm step works. */
export interface RmsNormStep {
  eps?: number;
  /** Added to x before; the sum is a value of its own. */
  residual?: Value;
  plusOne?: boolean;
}

/** `y = rmsNormForward(x + residual, g)` and the sum, or x itself without a residual. */
export function recordRmsNorm(
  t: GradientTape,
  x: Value,
  g: Value,
  options: RmsNormStep,
): { y: Value; sum: Value } {
  const {
    residual,
    eps,
    plusOne = false,
  } = readOptions('ModelTape.rmsNorm', options, { residual: true, eps: true, plusOne: true });
  checkStep('rmsNorm', t, { x, g, ...(residual === undefined ? {} : { residual }) });
  const keep = t.recording && [x, g, residual].some((input) => input?.differentiable === true);
  const made = rmsNormForward(x.tensor, g.tensor, {
    plusOne,
    keep,
    ...(eps === undefined ? {} : { eps }),
    ...(residual === undefined ? {} : { residual: residual.tensor }),
  });
  const sum =
    residual === undefined || made.sum === undefined
      ? x
      : t.record(made.sum, [x, residual], [], (dy, pass) => {
          pass.give(x, dy);
          pass.give(residual, dy);
        });
  const { invRms } = made;
  const keeps = [sum.tensor, g.tensor, ...(invRms === undefined ? [] : [invRms])];
  const y = t.record(made.y, [sum, g], keeps, (dy, pass) => {
    const needs = [pass.wants(sum) ? 'dx' : '', pass.wants(g) ? 'dg' : ''].filter(
      (name): name is 'dx' | 'dg' => name !== '',
    );
    if (needs.length === 0 || invRms === undefined) return;
    // What later steps gave the sum is added in the same pass.
    const dSum = pass.take(sum);
    const { dx, dg } = rmsNormBackward(dy, sum.tensor, g.tensor, {
      invRms,
      plusOne,
      needs,
      ...(dSum === undefined ? {} : { dSum }),
    });
    if (dx !== undefined) pass.give(sum, dx);
    if (dg !== undefined) pass.give(g, dg.reshape(g.shape));
  });
  return { y, sum };
}
