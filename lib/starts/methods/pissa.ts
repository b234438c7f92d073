import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';
import { balanced } from '../parts/factors.js';
import { checkIterations, passesOf } from '../parts/iterations.js';

/**
 * The leading singular triplets of w: `loraA = √(S/s) · Vᵀ`, `loraB = U · √(S/s)`. The base is quantised after they are taken
 * out, `w − s · loraB · loraA`. As PEFT's `pissa` computes it; with `iterations` it is `pissa_niter_N` over a basis that is more
 * exact.
 */
export const pissa = defineStart({
  start: 'pissa',
  reference:
    'Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models, 2024, arXiv:2404.02948',
  from: 'weight',
  defaults: { iterations: 12 },
  replacesBase: true,
  check: checkIterations,
  factors: ({ w }, { r, scaling, seed, settings }) => ({
    ...balanced(svd(w, { r, seed, iterations: passesOf(settings) }), scaling),
    base: 'residual',
  }),
});
