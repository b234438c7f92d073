import { baseProduct } from '../autograd/base-product.js';
import type { MapKind } from '../ops/elementwise.js';
import { defineAdapter } from './method.js';

const ACTIVATIONS: readonly MapKind[] = ['relu', 'tanh', 'sigmoid'];

/**
 * A small neural network over the base weight gives the update:
 * `ΔW = scaling · (f(wᵀ · aᵀ) · bᵀ)ᵀ` with a [r, N], b [N, r] and f the activation, that is
 * `y = x·wᵀ + scaling · (x · hᵀ) · bᵀ` with `h = f(a · w)` [r, K]: of rank r, but not linear in the factors. Two
 * layers, the paper's basic form.
 */
export const peanut = defineAdapter({
  method: 'peanut',
  reference:
    'Zhong et al., PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers, 2024, arXiv:2410.01870',
  defaults: { r: 32, scaling: 1, activation: 'relu' },
  trained: ['a', 'b'],
  shapes: ({ N, config: { r } }) => ({ a: [r, N], b: [N, r] }),
  init: (make) => ({ a: make.kaiming('a'), b: make.zeros('b') }),
  check: ({ config: { activation } }) =>
    ACTIVATIONS.includes(activation as MapKind)
      ? undefined
      : ['activation', `one of ${ACTIVATIONS.join(', ')}`, `'${activation}'`],
  forward: (t, { x, w, bias, p, config: { scaling, activation } }) => {
    const hidden = t.map(baseProduct(t, p.a, w), activation as MapKind);
    return t.expand(x, w, t.shrink(x, hidden), p.b, { scaling, bias });
  },
  peft: {
    type: 'PEANUT',
    when: ({ depth }) => (depth ?? 0) === 0,
    tensors: { a: 'peanut_A.weight', b: 'peanut_B.weight' },
    read: ({ r, scaling, act_fn }) => ({
      r: Number(r ?? 32),
      scaling: Number(scaling ?? 1),
      activation: String(act_fn ?? 'relu'),
    }),
    write: ({ r, scaling, activation }) => ({ r, depth: 0, scaling, act_fn: activation }),
  },
});
