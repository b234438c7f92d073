import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';
import { balanced } from '../parts/factors.js';
import { checkIterations, passesOf } from '../parts/iterations.js';

/**
 * The leading singular triplets of w without the scaling: `loraA = √S · Vᵀ`, `loraB = U · √S`, over the base
 * `w − s · loraB · loraA`. Every client of a federation computes the same ones. At `loraAlpha = r` it is {@link pissa}.
 */
export const federa = defineStart({
  start: 'federa',
  reference:
    'Yan et al., FeDeRA: Efficient Fine-tuning of Language Models in Federated Learning Leveraging Weight Decomposition, 2024, arXiv:2404.18848',
  from: 'weight',
  defaults: { iterations: 12 },
  replacesBase: true,
  check: checkIterations,
  factors: ({ w }, { r, seed, settings }) => ({
    ...balanced(svd(w, { r, seed, iterations: passesOf(settings) }), 1),
    base: 'residual',
  }),
});
