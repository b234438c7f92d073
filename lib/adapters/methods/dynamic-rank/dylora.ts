import { defineAdapter } from '../../definition/method.js';

/** The rank of a pass: from 1 to r, a multiplicative hash of the seed. */
const sampled = (seed: number, r: number): number =>
  1 + ((Math.imul(seed >>> 0, 0x9e3779b1) >>> 8) % r);

/**
 * One adapter for all ranks up to r. Each training pass samples a rank b from the call's seed and uses the
 * first b rows of loraA and columns of loraB: `y = x·wᵀ + loraAlpha / b · (x · loraA[:b]ᵀ) · loraB[:, :b]ᵀ`.
 * Outside training b is `rank` (0: all).
 */
export const dylora = defineAdapter({
  method: 'dylora',
  reference:
    'Valipour et al., DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation, 2022, arXiv:2210.07558',
  defaults: { r: 8, loraAlpha: 16, rank: 0, dropout: 0 },
  trained: ['loraA', 'loraB'],
  check: ({ config: { r, rank } }) =>
    rank >= 0 && rank <= r ? undefined : ['rank', `from 0 to r (${r})`, String(rank)],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r] }),
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  forward: (t, { x, w, bias, p, config, training, seed, K }) => {
    const { r, loraAlpha, rank, dropout } = config;
    const b = training && seed !== undefined ? sampled(seed, r) : rank || r;
    const scaling = loraAlpha / b;
    if (b === r) {
      const h = t.shrink(x, p.loraA, { dropout });
      return t.expand(x, w, h, p.loraB, { scaling, bias });
    }
    const rows = t.reshape(t.slice(t.reshape(p.loraA, [1, r * K]), 0, b * K), [b, K]);
    const columns = t.slice(p.loraB, 0, b);
    return t.expand(x, w, t.shrink(x, rows, { dropout }), columns, { scaling, bias });
  },
});
