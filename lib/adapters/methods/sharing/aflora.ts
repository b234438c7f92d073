import { defineAdapter } from '../../definition/method.js';

/**
 * VeRA's scales around factors that are trained first, and then frozen one after another by a
 * score: `y = x·wᵀ + b ⊙ (loraB · (d ⊙ (loraA · x)))`. To freeze a factor, leave its name out of
 * `needs`.
 */
export const aflora = defineAdapter({
  method: 'aflora',
  reference:
    'Liu et al., AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of Large Models, 2024, arXiv:2403.13269',
  defaults: { r: 4, dropout: 0 },
  trained: ['loraA', 'loraB', 'd', 'b'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], d: [r], b: [N] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.kaiming('loraB'),
    d: make.full('d', 1),
    b: make.zeros('b'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.multiply(t.shrink(x, p.loraA, { dropout: config.dropout }), p.d);
    return t.add(t.linear(x, w, bias), t.multiply(t.matmul(h, p.loraB), p.b));
  },
});
