import { Tensor } from '../../../core/tensor.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * A multiplicative update of rank r: `y = Σᵢ aᵢ ⊙ ((bᵢ ⊙ x) · wᵀ) + bias`, that is `w ⊙ (aᵀ · b)` without
 * forming it, with r products with the base weight. The first row of each factor starts at 1, the other
 * rows of a at 0. In the paper every example of a batch has its own pair: use one adapter for each, or a
 * batch of one.
 */
export const flora = defineAdapter({
  method: 'flora',
  reference:
    'Wen and Chaudhuri, Batched Low-Rank Adaptation of Foundation Models, 2023, arXiv:2312.05677',
  defaults: { r: 2 },
  trained: ['a', 'b'],
  shapes: ({ N, K, config: { r } }) => ({ a: [r, N], b: [r, K] }),
  init: (make) => ({
    a: make.values('a', (i) => (i < make.N ? 1 : 0)),
    b: make.full('b', 1),
  }),
  prepare: ({ device, config: { r } }) => ({
    rows: Array.from({ length: r }, (_, i) => {
      const one = new Float32Array(r);
      one[i] = 1;
      return Tensor.from(one, [1, r], { device });
    }),
  }),
  forward: (t, { x, w, bias, p, state, N, K }) => {
    const terms = state.rows.map((pick) => {
      const row = t.constant(pick);
      const b = t.reshape(t.product(row, p.b), [K]);
      const a = t.reshape(t.product(row, p.a), [N]);
      return t.multiply(t.linear(t.multiply(x, b), w), a);
    });
    const y = terms.reduce((sum, term) => t.add(sum, term));
    return bias === undefined ? y : t.add(y, bias);
  },
});
