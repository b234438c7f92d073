import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { choleskyRows, solveLower } from '../../linalg/cholesky.js';
import { transposed } from '../../linalg/rows.js';
import { svd } from '../../linalg/tensors/svd.js';
import { matmul } from '../../ops/matmul.js';
import { defineStart } from '../definition/definition.js';
import { balanced } from '../parts/factors.js';
import { damped, inputsOf } from '../parts/inputs.js';
import { checkIterations, passesOf } from '../parts/iterations.js';

/** Doublings of the damping before the covariance counts as useless. */
const MOST_DOUBLINGS = 40;

/** The covariance with the least damping from `share` on that makes it positive definite, and its factor. */
function definite(covariance: Float64Array, K: number, share: number) {
  for (let i = 0; i < MOST_DOUBLINGS; i++) {
    const values = damped(covariance, K, share * 2 ** i);
    const { l, failed } = choleskyRows(values, K);
    if (failed === undefined) return { values, l };
  }
  return fail('ERR_VALUE', 'start corda', 'the inputs', 'not all zero', 'a covariance of 0');
}

/**
 * Singular triplets of w under the covariance of its inputs: `U · S · Vᵀ = svd(w · C)`, `loraB = U · √(S/s)`,
 * `loraA = √(S/s) · Vᵀ · C⁻¹`, over the base `w − s · loraB · loraA`. C is the covariance plus `damping` times the mean of its
 * diagonal, doubled until it is positive definite. `mode` `ipm` takes the r largest triplets (what the data use most is
 * adapted), `kpm` the r smallest (it is kept). As in PEFT, rows are divided by their largest entry.
 */
export const corda = defineStart({
  start: 'corda',
  reference:
    'Yang et al., CorDA: Context-Oriented Decomposition Adaptation of Large Language Models, 2024, arXiv:2406.05223',
  from: 'inputs',
  defaults: { mode: 'ipm', damping: 0.01, iterations: 12 },
  replacesBase: true,
  check: (settings) => {
    const { mode, damping } = settings;
    if (mode !== 'ipm' && mode !== 'kpm') return ['mode', 'ipm or kpm', JSON.stringify(mode)];
    if (!(damping > 0)) return ['damping', 'above 0', String(damping)];
    return checkIterations(settings);
  },
  factors: (layer, { r, scaling, seed, settings }) => {
    const { w, K, device } = layer;
    const { gram, peak, batches } = inputsOf(layer);
    const size = peak * peak * batches || 1;
    const { values, l } = definite(
      gram.map((value) => value / size),
      K,
      settings.damping,
    );
    const c = Tensor.from(Float32Array.from(values), [K, K], { device });
    const which =
      settings.mode === 'ipm'
        ? ({ which: 'largest', iterations: passesOf(settings) } as const)
        : ({ which: 'smallest' } as const);
    const triplets = svd(matmul(w, c), { r, seed, ...which });
    const columns = transposed(Float64Array.from(triplets.v.readSync()), r, K);
    solveLower(l, K, columns, r);
    solveLower(l, K, columns, r, true);
    const v = Tensor.from(Float32Array.from(transposed(columns, K, r)), [r, K], { device });
    return { ...balanced({ ...triplets, v }, scaling), base: 'residual' };
  },
});
