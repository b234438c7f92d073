import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/**
 * A gate on every rank, which a proximal step of the optimiser (soft threshold) makes sparse:
 * `y = x·wᵀ + scaling · ((x · loraAᵀ) ⊙ gate) · loraBᵀ`.
 */
export const sora = defineAdapter({
  method: 'sora',
  reference:
    'Ding et al., Sparse Low-rank Adaptation of Pre-trained Language Models, 2023, arXiv:2311.11696',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'gate', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], gate: [r], loraB: [N, r] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    gate: make.normal('gate', 1),
    loraB: make.zeros('loraB'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.multiply(t.shrink(x, p.loraA, { dropout: config.dropout }), p.gate);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB, gate }, config) => ({
    loraA,
    loraB,
    core: gate,
    scaling: scalingOf(config),
  }),
});
