import { defineAdapter } from './method.js';

/**
 * Factors tied over the layers, a scale vector for each of them per layer:
 * `y = x·wᵀ + v ⊙ (((x · aᵀ) ⊙ u) · bᵀ)`. To tie, give one `a` and one `b` to every layer's `from` and
 * add their gradients; a layer of its own trains all four.
 */
export const tiedLora = defineAdapter({
  method: 'tied-lora',
  reference:
    'Renduchintala et al., Tied-LoRA: Enhancing parameter efficiency of LoRA with Weight Tying, 2023, arXiv:2311.09578',
  defaults: { r: 8, dropout: 0 },
  trained: ['a', 'b', 'u', 'v'],
  shapes: ({ N, K, config: { r } }) => ({ a: [r, K], b: [N, r], u: [r], v: [N] }),
  init: (make) => ({
    a: make.kaiming('a'),
    b: make.kaiming('b'),
    u: make.full('u', 1),
    v: make.zeros('v'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.multiply(t.shrink(x, p.a, { dropout: config.dropout }), p.u);
    return t.add(t.linear(x, w, bias), t.multiply(t.matmul(h, p.b), p.v));
  },
});
