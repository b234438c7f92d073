import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';
import { balanced } from '../parts/factors.js';

/**
 * The trailing singular triplets of w: `loraA = √(S/s) · Vᵀ`, `loraB = U · √(S/s)` of the r smallest values, and the base
 * `w − s · loraB · loraA`, so that training moves what the base uses least.
 */
export const milora = defineStart({
  start: 'milora',
  reference:
    'Wang et al., MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning, 2024, arXiv:2406.09044',
  from: 'weight',
  defaults: {},
  replacesBase: true,
  factors: ({ w }, { r, scaling, seed }) => ({
    ...balanced(svd(w, { r, seed, which: 'smallest' }), scaling),
    base: 'residual',
  }),
});
