import { defineAdapter } from '../../definition/method.js';

/**
 * A dense change of the weight, `y = x·wᵀ + x·weightᵀ`: full fine-tuning as an adapter. It is for optimisers of dense matrices, like
 * `galore` and `flora`, which keep little of it.
 */
export const full = defineAdapter({
  method: 'full',
  reference: 'full fine-tuning, as the change of the weight',
  defaults: { dropout: 0 },
  trained: ['weight'],
  shapes: ({ N, K }) => ({ weight: [N, K] }),
  init: (make) => ({ weight: make.zeros('weight') }),
  forward: (t, { x, w, bias, p, config: { dropout } }) =>
    t.add(t.linear(x, w, bias), t.matmul(t.dropout(x, dropout), p.weight)),
});
