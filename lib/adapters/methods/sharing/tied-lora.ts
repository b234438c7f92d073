import { defineAdapter } from '../../definition/method.js';

/**
 * Factors tied over the layers, and two scale vectors per layer: `y = x·wᵀ + v ⊙ (((x · aᵀ) ⊙ u) · bᵀ)`, with a [r, K] and b
 * [N, r] shared by the layers of one kind and size, and u [r] and v [N] of the layer.
 *
 * The paper ties the single projection that its models have for queries, keys and values. Here each kind of projection
 * has its own factors. {@link AdapterMethod.createAll} makes layers that share.
 */
export const tiedLora = defineAdapter({
  method: 'tied-lora',
  reference:
    'Renduchintala et al., Tied-LoRA: Enhancing parameter efficiency of LoRA with Weight Tying, 2023, arXiv:2311.09578',
  defaults: { r: 8, dropout: 0 },
  trained: ['a', 'b', 'u', 'v'],
  shared: { a: 'kind', b: 'kind' },
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
