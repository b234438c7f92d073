import { Tensor } from '../../../core/tensor.js';
import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/**
 * Dropout of whole columns of loraA and rows of loraB, drawn once for all tokens of a pass:
 * `y = x·wᵀ + scaling · maskN ⊙ (((x ⊙ maskK) · loraAᵀ) · loraBᵀ)`, with masks of 0 and
 * `1 / (1 − p)`.
 */
export const loraDropout = defineAdapter({
  method: 'lora-dropout',
  reference:
    'Lin et al., LoRA Dropout as a Sparsity Regularizer for Overfitting Control, 2024, arXiv:2404.09610',
  defaults: { r: 8, loraAlpha: 16, rslora: false, p: 0.5 },
  trained: ['loraA', 'loraB'],
  check: ({ config: { p } }) => (p >= 0 && p < 1 ? undefined : ['p', 'in [0, 1)', String(p)]),
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  prepare: ({ N, K, device }) => ({
    inputs: Tensor.from(new Float32Array(K).fill(1), [K], { device }),
    outputs: Tensor.from(new Float32Array(N).fill(1), [N], { device }),
  }),
  forward: (t, { x, w, bias, p, config, state, training }) => {
    const scaling = scalingOf({ ...config, dropout: 0 });
    if (!training || config.p === 0) {
      return t.expand(x, w, t.shrink(x, p.loraA), p.loraB, { scaling, bias });
    }
    const maskK = t.dropout(t.constant(state.inputs), config.p);
    const maskN = t.dropout(t.constant(state.outputs), config.p);
    const update = t.matmul(t.shrink(t.multiply(x, maskK), p.loraA), p.loraB);
    return t.add(t.linear(x, w, bias), t.multiply(update, maskN), 1, scaling);
  },
});
