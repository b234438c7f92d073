import { defineAdapter } from '../../definition/method.js';
import { type AlphaConfig, scalingOf } from '../../parts/scaling.js';

/**
 * A LoRA that weighs its input features: `y = x·wᵀ + scaling · ((dropout(x) ⊙ scale) · loraAᵀ) · loraBᵀ`, with scale [K]
 * trained from ones.
 */
export const scaledLora = defineAdapter({
  method: 'scaled-lora',
  reference: 'LoRA with the input scale of IA3: Hu et al., 2021, arXiv:2106.09685',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 } satisfies AlphaConfig,
  trained: ['loraA', 'loraB', 'scale'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], scale: [K] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    scale: make.full('scale', 1),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.shrink(t.multiply(t.dropout(x, config.dropout), p.scale), p.loraA);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
});
