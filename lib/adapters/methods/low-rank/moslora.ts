import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/** A trained r × r mixer between the factors: `y = x·wᵀ + scaling · ((x · loraAᵀ) · mixerᵀ) · loraBᵀ`. */
export const moslora = defineAdapter({
  method: 'moslora',
  reference: 'Wu et al., Mixture-of-Subspaces in Low-Rank Adaptation, 2024, arXiv:2406.11909',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'mixer', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], mixer: [r, r], loraB: [N, r] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    mixer: make.kaiming('mixer'),
    loraB: make.zeros('loraB'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.matmul(t.shrink(x, p.loraA, { dropout: config.dropout }), p.mixer);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB, mixer }, config) => ({
    loraA,
    loraB,
    core: mixer,
    scaling: scalingOf(config),
  }),
});
