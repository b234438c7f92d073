import { singularFactors } from '../../../linalg/tensors/triplets.js';
import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/**
 * Trains only an r × r core between frozen factors: `y = x·wᵀ + scaling · ((x · loraAᵀ) · coreᵀ) · loraBᵀ`. loraA [r, K] and
 * loraB [N, r] are the r leading singular triplets of the base weight `w = U · S · Vᵀ`: `loraA = S · Vᵀ`, `loraB = U`.
 *
 * The singular values are on the input side, and the core is drawn with a standard deviation of 1e-5, as in the authors'
 * program (github.com/MohammadrezaBanaei/LoRA-XS): a new adapter is near the base model, not at it. Without a `weight`
 * the factors are random. The paper compares with such factors; they train more slowly.
 */
export const loraXs = defineAdapter({
  method: 'lora-xs',
  reference:
    'Bałazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, 2024, arXiv:2405.17604',
  defaults: { r: 16, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['core'],
  frozen: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ core: [r, r], loraA: [r, K], loraB: [N, r] }),
  check: ({ N, K, config: { r } }) =>
    r <= Math.min(N, K) ? undefined : ['r', `from 1 to ${Math.min(N, K)}`, String(r)],
  init: (make) => {
    const { w, K, config } = make;
    const core = make.normal('core', 1e-5);
    if (w === undefined) {
      return { core, loraA: make.kaiming('loraA'), loraB: make.kaiming('loraB') };
    }
    const { u, s, v } = singularFactors(w, config.r, make.seed());
    return {
      core,
      loraA: make.values('loraA', (i) => (s[Math.floor(i / K)] as number) * (v[i] as number)),
      loraB: make.values('loraB', (i) => u[i] as number),
    };
  },
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.matmul(t.shrink(x, p.loraA, { dropout: config.dropout }), p.core);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB, core }, config) => ({
    loraA,
    loraB,
    core,
    scaling: scalingOf(config),
  }),
});
