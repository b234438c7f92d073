import { denseUpdate } from '../../../autograd/dense-update.js';
import { denseRows, rowStep } from '../../../ops/dense-rows.js';
import { defineAdapter } from '../../definition/method.js';
import { patternOf } from '../../parts/scaling.js';

/**
 * A low-rank product that rescales the base weight entry by entry: `ΔW = w ⊙ (hiraB · hiraA)`, which
 * has a high rank. It is made tile by tile from rows of the base, which are decoded on demand.
 */
export const hira = defineAdapter({
  method: 'hira',
  reference:
    'Huang et al., HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models, 2025, ICLR 2025',
  defaults: { r: 32, dropout: 0 },
  trained: ['hiraA', 'hiraB'],
  shapes: ({ N, K, config: { r } }) => ({ hiraA: [r, K], hiraB: [N, r] }),
  init: (make) => ({ hiraA: make.kaiming('hiraA'), hiraB: make.zeros('hiraB') }),
  forward: (t, { x, w, bias, p, N, config: { dropout } }) => {
    const update = denseUpdate(t, t.dropout(x, dropout), {
      N,
      step: rowStep(w),
      rows: { b: p.hiraB },
      inputs: { a: p.hiraA },
      tile: (tape, { a, b }, begin, end) =>
        tape.multiply(tape.product(b, a), tape.own(denseRows(w, begin, end))),
    });
    return t.add(t.linear(x, w, bias), update);
  },
  peft: {
    type: 'HIRA',
    patterns: { r: 'rank_pattern' },
    tensors: { hiraA: 'hira_A', hiraB: 'hira_B' },
    read: ({ r, hira_dropout, rank_pattern }, module) => ({
      r: patternOf(rank_pattern, module) ?? Number(r ?? 32),
      dropout: Number(hira_dropout ?? 0),
    }),
    write: ({ r, dropout }) => ({ r, hira_dropout: dropout }),
  },
});
