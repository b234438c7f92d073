import { defineStart } from '../../definition/definition.js';
import { balanced } from '../../parts/factors.js';
import { autocorrelationOf, inputsOf } from '../../parts/inputs.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';
import { weightedRepair } from '../../parts/weighted-repair.js';

/**
 * The repair of the quantised weight that leaves the least error in the layer's output over the data, QERA-exact: with R = E xᵀx,
 * `s · loraB · loraA = ((w − Q) · R^½)ᵣ · R^−½`. The base is `Q = quantise(w)`, as without a start. R^½ is a Cholesky
 * factor here; the update is the same.
 */
export const qera = defineStart({
  start: 'qera',
  reference:
    'Zhang et al., QERA: an Analytical Framework for Quantization Error Reconstruction, 2024, arXiv:2410.06040',
  from: 'inputs',
  quantises: true,
  defaults: { iterations: 12 },
  check: checkIterations,
  factors: (layer, { r, scaling, seed, settings }) => {
    const second = autocorrelationOf(inputsOf(layer));
    const options = { r, seed, iterations: passesOf(settings) };
    return balanced(weightedRepair('qera', layer, second, options), scaling);
  },
});
