import { denseUpdate } from '../autograd/dense-update.js';
import { defineAdapter } from './method.js';
import { patternOf } from './scaling.js';

/**
 * A Hadamard product of two low-rank products: `ΔW = loraAlpha / r · (w1A · w1B) ⊙ (w2A · w2B)`, of rank up to
 * r². The update is made and differentiated tile by tile ({@link denseUpdate}).
 */
export const loha = defineAdapter({
  method: 'loha',
  reference:
    'Hyeon-Woo et al., FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, 2021, arXiv:2108.06098',
  defaults: { r: 8, loraAlpha: 8 },
  trained: ['w1A', 'w1B', 'w2A', 'w2B'],
  shapes: ({ N, K, config: { r } }) => ({
    w1A: [N, r],
    w1B: [r, K],
    w2A: [N, r],
    w2B: [r, K],
  }),
  init: (make) => ({
    w1A: make.kaiming('w1A'),
    w1B: make.kaiming('w1B'),
    w2A: make.kaiming('w2A'),
    w2B: make.zeros('w2B'),
  }),
  forward: (t, { x, w, bias, p, N, config: { r, loraAlpha } }) => {
    const update = denseUpdate(t, x, {
      N,
      rows: { a1: p.w1A, a2: p.w2A },
      inputs: { b1: p.w1B, b2: p.w2B },
      tile: (tape, { a1, a2, b1, b2 }) =>
        tape.multiply(tape.product(a1, b1), tape.product(a2, b2), loraAlpha / r),
    });
    return t.add(t.linear(x, w, bias), update);
  },
  peft: {
    type: 'LOHA',
    zeros: ['rank_dropout', 'module_dropout'],
    tensors: { w1A: 'hada_w1_a', w1B: 'hada_w1_b', w2A: 'hada_w2_a', w2B: 'hada_w2_b' },
    read: ({ r, alpha, rank_pattern, alpha_pattern }, module) => ({
      r: patternOf(rank_pattern, module) ?? Number(r ?? 8),
      loraAlpha: patternOf(alpha_pattern, module) ?? Number(alpha ?? 8),
    }),
    write: ({ r, loraAlpha }) => ({ r, alpha: loraAlpha }),
  },
});
