import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';
import { type AlphaConfig, scalingOf } from '../../parts/scaling.js';

/**
 * Information elastic connection: a LoRA with a shortcut around each factor. A shortcut has no parameters
 * except one trained scale: `h = dropout(x)·loraAᵀ + scaleA · means(x)`, the means of r runs of K / r
 * neighbouring features, and `y = x·wᵀ + scaling · (h·loraBᵀ + scaleB · spread(h))`, which repeats every
 * value of h for N / r outputs. The other half of the paper, quantising w by its entropy, is the start `icq`.
 */
export const irQlora = defineAdapter({
  method: 'ir-qlora',
  reference:
    'Qin et al., Accurate LoRA-Finetuning Quantization of LLMs via Information Retention, 2024, arXiv:2402.05445',
  defaults: { r: 64, loraAlpha: 16, rslora: false, dropout: 0 } satisfies AlphaConfig,
  trained: ['loraA', 'loraB', 'scaleA', 'scaleB'],
  shapes: ({ N, K, config: { r } }) => ({
    loraA: [r, K],
    loraB: [N, r],
    scaleA: [1],
    scaleB: [1],
  }),
  check: ({ N, K, config: { r } }) =>
    r > 0 && K % r === 0 && N % r === 0
      ? undefined
      : ['r', `a divisor of K (${K}) and of N (${N})`, String(r)],
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    scaleA: make.zeros('scaleA'),
    scaleB: make.zeros('scaleB'),
  }),
  prepare: ({ N, K, config: { r }, device }) => ({
    runs: FeatureMap.groupSum(K, r, { device }),
    spread: FeatureMap.repeat(r, N / r, 'inner', { device }),
  }),
  forward: (t, { x, w, bias, p, config, state, K }) => {
    const scaling = scalingOf(config);
    const means = t.features(x, state.runs, { alpha: config.r / K, dtype: 'f32' });
    const seen = t.shrink(x, p.loraA, { dropout: config.dropout });
    const h = t.add(seen, t.multiply(means, p.scaleA));
    const y = t.expand(x, w, h, p.loraB, { scaling, bias });
    const { dtype } = x.tensor;
    return t.features(t.multiply(h, p.scaleB), state.spread, { alpha: scaling, plus: y, dtype });
  },
});
