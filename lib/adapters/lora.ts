import { defineAdapter } from './method.js';
import { alphaFields, readAlpha, scalingOf } from './scaling.js';

/**
 * Low-rank adaptation: `y = x·wᵀ + scaling · (dropout(x) · loraAᵀ) · loraBᵀ`, with
 * `scaling = loraAlpha / r`, or `/ sqrt(r)` with rsLoRA.
 */
export const lora = defineAdapter({
  method: 'lora',
  reference:
    'Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685',
  defaults: { r: 8, loraAlpha: 8, rslora: false, dropout: 0 },
  trained: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.shrink(x, p.loraA, { dropout: config.dropout });
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB }, config) => ({ loraA, loraB, scaling: scalingOf(config) }),
  peft: {
    type: 'LORA',
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight' },
    read: readAlpha,
    write: alphaFields,
  },
});
