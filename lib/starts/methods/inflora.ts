import { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';
import { scaleRows } from '../parts/factors.js';
import { autocorrelationOf, inputsOf } from '../parts/inputs.js';

/**
 * The leading directions of the inputs, over √3, as `loraA`, which stays as it is, and `loraB = 0`: updates then lie in the space
 * of this task's inputs. For the first of several tasks, as in the authors' program (github.com/liangyanshuo/InfLoRA); of later
 * tasks' inputs, it first takes out the space of those before.
 */
export const inflora = defineStart({
  start: 'inflora',
  reference:
    'Liang and Li, InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning, 2024, arXiv:2404.00228',
  from: 'inputs',
  defaults: {},
  frozen: ['loraA'],
  factors: (layer, { r, seed }) => {
    const { N, K, device } = layer;
    const values = autocorrelationOf(inputsOf(layer));
    const { v } = svd(Tensor.from(Float32Array.from(values), [K, K], { device }), { r, seed });
    return {
      loraA: scaleRows(v, new Array(r).fill(1 / Math.sqrt(3))),
      loraB: Tensor.zeros([N, r], { device }),
    };
  },
});
