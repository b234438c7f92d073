import { FeatureMap } from '../ops/feature-map.js';
import { defineAdapter } from './method.js';

/**
 * A sum of Kronecker products with rank-one right factors: `ΔW = Σᵢ left_i ⊗ (uᵢ · vᵢᵀ)`, left_i [n, n] shared
 * by the layers, u [N/n], v [K/n] of the layer's own. `y = x·wᵀ + x · ΔWᵀ`, without forming ΔW: x in n parts is
 * projected on each v, mixed over the parts by each left_i, and spread along each u.
 */
export const kadaptation = defineAdapter({
  method: 'kadaptation',
  reference:
    'He et al., Parameter-efficient Model Adaptation for Vision Transformers, 2022, arXiv:2203.16329',
  defaults: { n: 4, terms: 4 },
  trained: ['left', 'u', 'v'],
  check: ({ N, K, config: { n } }) =>
    N % n === 0 && K % n === 0 ? undefined : ['n', `a divisor of ${N} and ${K}`, String(n)],
  shapes: ({ N, K, config: { n, terms } }) => ({
    left: [terms, n, n],
    u: [N / n, terms],
    v: [terms, K / n],
  }),
  init: (make) => ({
    left: make.kaiming('left'),
    u: make.zeros('u'),
    v: make.kaiming('v'),
  }),
  prepare: ({ device, config: { n, terms } }) => ({
    turn: FeatureMap.transpose(n, terms, { device }),
  }),
  forward: (t, { x, w, bias, p, state, config: { n, terms }, N, K }) => {
    const leading = x.shape.slice(0, -1);
    const parts = t.reshape(x, [...leading, n, K / n]);
    const projected = t.reshape(t.shrink(parts, p.v), [...leading, n * terms]);
    const byTerm = t.reshape(t.features(projected, state.turn), [...leading, terms, n]);
    const mixed = t.reshape(t.blockMatmul(byTerm, p.left), [...leading, terms * n]);
    const back = t.reshape(t.features(mixed, state.turn.adjoint), [...leading, n, terms]);
    const update = t.reshape(t.matmul(back, p.u), [...leading, N]);
    return t.add(t.linear(x, w, bias), update);
  },
});
