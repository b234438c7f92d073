import { defineAdapter } from '../../definition/method.js';

/** A trained bias and nothing else: `y = x·wᵀ + bias + delta`. */
export const beft = defineAdapter({
  method: 'beft',
  reference:
    'Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning, 2021, arXiv:2106.10199',
  defaults: {},
  trained: ['delta'],
  shapes: ({ N }) => ({ delta: [1, N] }),
  init: (make) => ({ delta: make.zeros('delta') }),
  forward: (t, { x, w, bias, p, N }) => t.add(t.linear(x, w, bias), t.reshape(p.delta, [N])),
  peft: {
    type: 'BEFT',
    tensors: { delta: 'beft_bias' },
    read: () => ({}),
    write: () => ({}),
  },
});
