import { defineAdapter } from './method.js';
import { scalingOf } from './scaling.js';

/**
 * Only an r × r core is trained, between frozen factors: `y = x·wᵀ + scaling · ((x · loraAᵀ) · coreᵀ) · loraBᵀ`.
 * The paper takes `loraB · loraA` from the truncated SVD of w (`U·S` and `Vᵀ`); give those to `from`.
 * Fresh factors are random, which the paper compares with; they train more slowly.
 */
export const loraXs = defineAdapter({
  method: 'lora-xs',
  reference:
    'Bałazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, 2024, arXiv:2405.17604',
  defaults: { r: 16, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['core'],
  frozen: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ core: [r, r], loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({
    core: make.zeros('core'),
    loraA: make.kaiming('loraA'),
    loraB: make.kaiming('loraB'),
  }),
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
