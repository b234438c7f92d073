import { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';

/**
 * The left singular vectors of the r smallest values of w as `loraB`, which stays as it is, and `loraA = 0`, which is trained.
 * The base is w.
 */
export const mica = defineStart({
  start: 'mica',
  reference: 'MiCA, 2026, arXiv:2604.01694, as in PEFT 0.20',
  from: 'weight',
  defaults: {},
  frozen: ['loraB'],
  peft: 'mica',
  factors: ({ w, K, device }, { r, seed }) => ({
    loraA: Tensor.zeros([r, K], { device }),
    loraB: svd(w, { r, seed, which: 'smallest' }).u,
  }),
});
