import { defineAdapter } from './method.js';

/**
 * A singular-value-like triple whose ranks are pruned while training:
 * `y = x·wᵀ + loraAlpha / (ranknum + 1e-5) · ((dropout(x) · loraAᵀ) ⊙ loraE) · loraBᵀ`, where ranknum
 * are the ranks that are left.
 */
export const adalora = defineAdapter({
  method: 'adalora',
  reference:
    'Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, 2023, arXiv:2303.10512',
  defaults: { r: 12, loraAlpha: 32, dropout: 0 },
  trained: ['loraA', 'loraE', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraE: [r, 1], loraB: [N, r] }),
  init: (make) => ({
    loraA: make.normal('loraA', 0.02),
    loraE: make.zeros('loraE'),
    loraB: make.normal('loraB', 0.02),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const { r, loraAlpha, dropout } = config;
    const h = t.multiply(t.shrink(x, p.loraA, { dropout }), t.reshape(p.loraE, [r]));
    return t.expand(x, w, h, p.loraB, { scaling: loraAlpha / (r + 1e-5), bias });
  },
  update: ({ loraA, loraB, loraE }, { r, loraAlpha }) => ({
    loraA,
    loraB,
    core: loraE.reshape([r]),
    scaling: loraAlpha / (r + 1e-5),
  }),
  peft: {
    type: 'ADALORA',
    tensors: { loraA: 'lora_A', loraE: 'lora_E', loraB: 'lora_B' },
    read: ({ r, init_r, lora_alpha, lora_dropout, rank_pattern }, module) => ({
      r: keptRanks(rank_pattern, module) ?? Number(init_r ?? r),
      loraAlpha: Number(lora_alpha ?? 32),
      dropout: Number(lora_dropout ?? 0),
    }),
    write: ({ r, loraAlpha, dropout }) => ({
      init_r: r,
      r,
      lora_alpha: loraAlpha,
      lora_dropout: dropout,
    }),
  },
});

/** Ranks that a pruned module kept: PEFT saves a flag for each. */
function keptRanks(pattern: unknown, module: string): number | undefined {
  const flags = Object.entries((pattern ?? {}) as Record<string, boolean[]>).find(([key]) =>
    key.includes(`${module}.lora_E`),
  )?.[1];
  return flags?.filter(Boolean).length;
}
