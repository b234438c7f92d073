import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/** LoRA with loraA frozen at its initial values: the backward pass needs h, of width r, and not x. */
export const loraFa = defineAdapter({
  method: 'lora-fa',
  reference:
    'Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, 2023, arXiv:2308.03303',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraB'],
  frozen: ['loraA'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.shrink(x, p.loraA, { dropout: config.dropout });
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB }, config) => ({ loraA, loraB, scaling: scalingOf(config) }),
});
