import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/**
 * An ensemble of small adapters: each of `minis` pairs sees its part of the features and gives its part of
 * the outputs, `y = x·wᵀ + loraAlpha / r · blockdiag(loraB_i · loraA_i) · dropout(x)`, which has the rank
 * `minis · r`.
 */
export const melora = defineAdapter({
  method: 'melora',
  reference:
    'Ren et al., MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning, 2024, arXiv:2402.17263',
  defaults: { r: 8, minis: 2, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r, minis } }) => ({
    loraA: [minis, r, K / minis],
    loraB: [minis, N / minis, r],
  }),
  check: ({ N, K, config: { minis } }) =>
    minis > 0 && N % minis === 0 && K % minis === 0
      ? undefined
      : ['minis', `a divisor of K (${K}) and of N (${N})`, String(minis)],
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  forward: (t, { x, w, bias, p, config, N, K }) => {
    const { minis, dropout } = config;
    const lead = x.shape.slice(0, -1);
    const input = t.cast(t.dropout(x, dropout), 'f32');
    const h = t.blockMatmul(t.reshape(input, [...lead, minis, K / minis]), p.loraA);
    const update = t.reshape(t.blockMatmul(h, p.loraB), [...lead, N]);
    return t.add(t.linear(x, w, bias), update, 1, scalingOf(config));
  },
});
