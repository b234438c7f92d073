import { defineAdapter } from '../../definition/method.js';

/**
 * A new adapter over the sum of frozen earlier ones, one per earlier task:
 * `y = x·wᵀ + (x · pastAᵀ) · pastBᵀ + scaling · (x · loraAᵀ) · loraBᵀ`. The ranks of the past adapters are
 * side by side, with their scalings in pastB; pass them to `from`.
 */
export const layeredLora = defineAdapter({
  method: 'layered-lora',
  reference:
    'Smith et al., ConStruct-VL: Data-Free Continual Structured VL Concepts Learning, 2022, arXiv:2211.09790',
  defaults: { r: 8, loraAlpha: 16, pastRank: 8, dropout: 0 },
  trained: ['loraA', 'loraB'],
  frozen: ['pastA', 'pastB'],
  shapes: ({ N, K, config: { r, pastRank } }) => ({
    loraA: [r, K],
    loraB: [N, r],
    pastA: [pastRank, K],
    pastB: [N, pastRank],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    pastA: make.zeros('pastA'),
    pastB: make.zeros('pastB'),
  }),
  forward: (t, { x, w, bias, p, config: { r, loraAlpha, dropout } }) => {
    const past = t.matmul(t.shrink(x, p.pastA), p.pastB);
    const scaling = loraAlpha / r;
    return t.add(
      t.expand(x, w, t.shrink(x, p.loraA, { dropout }), p.loraB, { scaling, bias }),
      past,
    );
  },
});
