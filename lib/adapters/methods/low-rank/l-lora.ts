import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/**
 * LoRA linearised around a frozen point (a0, b0), so that the weights of several tasks can be
 * added:
 * `y = x·wᵀ + scaling · ((x · a0ᵀ) · (b0 + deltaB)ᵀ + (x · deltaAᵀ) · b0ᵀ)`.
 */
export const lLora = defineAdapter({
  method: 'l-lora',
  reference:
    'Tang et al., Parameter Efficient Multi-task Model Fusion with Partial Linearization, 2023, arXiv:2310.04742',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['deltaA', 'deltaB'],
  frozen: ['a0', 'b0'],
  shapes: ({ N, K, config: { r } }) => ({
    deltaA: [r, K],
    deltaB: [N, r],
    a0: [r, K],
    b0: [N, r],
  }),
  init: (make) => ({
    deltaA: make.zeros('deltaA'),
    deltaB: make.zeros('deltaB'),
    a0: make.kaiming('a0'),
    b0: make.zeros('b0'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const scaling = scalingOf(config);
    const dropped = t.dropout(x, config.dropout);
    const main = t.expand(x, w, t.shrink(dropped, p.a0), t.add(p.b0, p.deltaB), { scaling, bias });
    return t.add(main, t.matmul(t.shrink(dropped, p.deltaA), p.b0), 1, scaling);
  },
});
