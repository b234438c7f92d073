import { fail } from '../../../core/errors.js';
import { defineAdapter } from '../../definition/method.js';
import { kPrefix } from '../../definition/peft-form.js';

/**
 * A triple like an SVD, whose ranks are pruned during training: `y = x·wᵀ + loraAlpha / (ranknum + 1e-5)
 * · ((dropout(x) · loraAᵀ) ⊙ loraE) · loraBᵀ`, where ranknum is the initial number of ranks (0: r). A
 * pruned layer that PEFT has saved holds the r remaining ranks, possibly none, and keeps its scale.
 */
export const adalora = defineAdapter({
  method: 'adalora',
  reference:
    'Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, 2023, arXiv:2303.10512',
  defaults: { r: 12, ranknum: 0, loraAlpha: 32, dropout: 0 },
  trained: ['loraA', 'loraE', 'loraB'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraE: [r, 1], loraB: [N, r] }),
  init: (make) => ({
    loraA: make.normal('loraA', 0.02),
    loraE: make.zeros('loraE'),
    loraB: make.normal('loraB', 0.02),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const { r, dropout } = config;
    const h = t.multiply(t.shrink(x, p.loraA, { dropout }), t.reshape(p.loraE, [r]));
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  update: ({ loraA, loraB, loraE }, config) => ({
    loraA,
    loraB,
    core: loraE.reshape([config.r]),
    scaling: scalingOf(config),
  }),
  peft: {
    type: 'ADALORA',
    tensors: { loraA: 'lora_A', loraE: 'lora_E', loraB: 'lora_B' },
    read: ({ r, init_r, lora_alpha, lora_dropout, rank_pattern }, module) => {
      const first = Number(init_r ?? r);
      const kept = keptRanks(rank_pattern, module);
      return {
        r: kept ?? first,
        ranknum: kept === undefined ? 0 : first,
        loraAlpha: Number(lora_alpha ?? 32),
        dropout: Number(lora_dropout ?? 0),
      };
    },
    // PEFT divides by init_r, whatever ranks remain. A pattern has a flag per rank that says whether it remains.
    write: (config, modules, configs) => {
      const { ranknum, loraAlpha, dropout } = config;
      const first = ranknum > 0 ? ranknum : config.r;
      if (configs.some((other) => (other.ranknum > 0 ? other.ranknum : other.r) !== first)) {
        const expected = 'the same in all layers before they are pruned (PEFT has one init_r)';
        fail('ERR_VALUE', 'adaptersToPeft', 'r', expected, 'several');
      }
      const kept = modules.map((module, i) => {
        const r = configs[i]?.r ?? first;
        return [`${module}.lora_E`, Array.from({ length: first }, (_, k) => k < r)];
      });
      const pruned = configs.some(({ r }) => r !== first);
      return {
        init_r: first,
        r: first,
        // PEFT rejects a folder without a number of steps, even if no steps follow.
        total_step: 1,
        lora_alpha: loraAlpha,
        lora_dropout: dropout,
        ...(pruned ? { rank_pattern: Object.fromEntries(kept) } : {}),
      };
    },
  },
});

const kEpsilon = 1e-5;

function scalingOf(config: { r: number; ranknum: number; loraAlpha: number }): number {
  const ranknum = config.ranknum > 0 ? config.ranknum : config.r;
  // Like PEFT, which ignores an alpha that is not above 0.
  return (config.loraAlpha > 0 ? config.loraAlpha : ranknum) / (ranknum + kEpsilon);
}

/** The ranks that a pruned module kept: PEFT saves a flag for each. */
function keptRanks(pattern: unknown, module: string): number | undefined {
  const name = `${module}.lora_E`;
  const flags = Object.entries((pattern ?? {}) as Record<string, boolean[]>).find(([key]) => {
    const own = key.startsWith(kPrefix) ? key.slice(kPrefix.length) : key;
    return own === name || own.startsWith(`${name}.`);
  })?.[1];
  return flags?.filter(Boolean).length;
}
