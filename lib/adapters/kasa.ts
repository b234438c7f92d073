import { defineAdapter } from './method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from './scaling.js';

/**
 * Knowledge-aware singular values: a diagonal between the factors, over a base from which its r
 * smallest singular triplets were taken: `y = x·wᵀ + scaling · ((x · loraAᵀ) ⊙ diag) · loraBᵀ`.
 */
export const kasa = defineAdapter({
  method: 'kasa',
  reference:
    'Wang et al., KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models, 2024, arXiv:2412.06071',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'diag', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], diag: [r], loraB: [N, r] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    diag: make.normal('diag', 1),
    loraB: make.zeros('loraB'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.multiply(t.shrink(x, p.loraA, { dropout: config.dropout }), p.diag);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB, diag }, config) => ({
    loraA,
    loraB,
    core: diag,
    scaling: scalingOf(config),
  }),
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ kasa_config }) => kasa_config !== undefined && kasa_config !== null,
    tensors: { loraA: 'lora_A.weight', diag: 'lora_diag', loraB: 'lora_B.weight' },
    read: readAlpha,
    write: (config) => ({ ...alphaFields(config), kasa_config: {} }),
  },
});
