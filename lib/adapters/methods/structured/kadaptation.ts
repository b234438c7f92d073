import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * A sum of Kronecker products with rank-one right factors: `ΔW = scale · Σᵢ leftᵢ ⊗ (uᵢ · vᵢᵀ)`, with leftᵢ [n, n] shared
 * by the layers of one kind and size, and u [N/n, terms] and v [terms, K/n] of the layer. `y = x·wᵀ + x · ΔWᵀ`, without
 * forming ΔW: x in n parts is projected on each v, mixed over the parts by each leftᵢ, and spread along each u.
 *
 * Sizes and scale are those of the authors' program (github.com/eric-ai-lab/PEViT): n = 32 with as many terms, leftᵢ of
 * rank one (`leftA` [terms, n, leftRank], `leftB` [terms, leftRank, n]), scale 128 / 4 · 5. With `leftRank: 0`, leftᵢ is
 * a full matrix (`left` [terms, n, n]), as in the paper. Where the program and the paper differ further, the method
 * follows the paper: it has no bias of its own and drops no entries of ΔW. The program starts u and v at zero, where both
 * gradients vanish; here v has Glorot's initial values, and u is zero. {@link AdapterMethod.createAll} makes layers that
 * share.
 */
export const kadaptation = defineAdapter({
  method: 'kadaptation',
  reference:
    'He et al., Parameter-efficient Model Adaptation for Vision Transformers, 2022, arXiv:2203.16329',
  defaults: { n: 32, terms: 32, leftRank: 1, scale: 160 },
  trained: ['leftA', 'leftB', 'left', 'u', 'v'],
  shared: { leftA: 'kind', leftB: 'kind', left: 'kind' },
  check: ({ N, K, config: { n, terms, leftRank } }) => {
    if (!(Number.isInteger(n) && n > 0 && N % n === 0 && K % n === 0)) {
      return ['n', `a divisor of ${N} and ${K}`, String(n)];
    }
    if (!(Number.isInteger(terms) && terms > 0)) {
      return ['terms', 'an integer of at least 1', String(terms)];
    }
    return Number.isInteger(leftRank) && leftRank >= 0 && leftRank <= n
      ? undefined
      : ['leftRank', `an integer from 0 to n (${n})`, String(leftRank)];
  },
  shapes: ({ N, K, config: { n, terms, leftRank } }) => ({
    ...(leftRank > 0
      ? { leftA: [terms, n, leftRank], leftB: [terms, leftRank, n] }
      : { left: [terms, n, n] }),
    u: [N / n, terms],
    v: [terms, K / n],
  }),
  init: (make) => {
    const { K, config } = make;
    const { n, leftRank } = config;
    return {
      ...(leftRank > 0
        ? { leftA: make.uniform('leftA', 0.01), leftB: make.uniform('leftB', 0.01) }
        : { left: make.uniform('left', 0.01) }),
      u: make.zeros('u'),
      // For a matrix [K/n, 1], with a gain of √2.
      v: make.uniform('v', Math.sqrt(12 / (1 + K / n))),
    };
  },
  prepare: ({ device, config: { n, terms } }) => ({
    turn: FeatureMap.transpose(n, terms, { device }),
  }),
  forward: (t, { x, w, bias, p, state, config: { n, terms, leftRank, scale }, N, K }) => {
    const leading = x.shape.slice(0, -1);
    const parts = t.reshape(x, [...leading, n, K / n]);
    const projected = t.reshape(t.shrink(parts, p.v), [...leading, n * terms]);
    const byTerm = t.reshape(t.features(projected, state.turn), [...leading, terms, n]);
    const left =
      leftRank > 0
        ? t.blockMatmul(t.blockMatmul(byTerm, p.leftB), p.leftA)
        : t.blockMatmul(byTerm, p.left);
    const mixed = t.reshape(left, [...leading, terms * n]);
    const back = t.reshape(t.features(mixed, state.turn.adjoint), [...leading, n, terms]);
    const update = t.reshape(t.matmul(back, p.u), [...leading, N]);
    return t.add(t.linear(x, w, bias), update, 1, scale);
  },
});
