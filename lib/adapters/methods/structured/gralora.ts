import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * Granular LoRA: w in k × k blocks, each with an adapter of rank r / k. With x in k parts,
 * `h_i = x_i · graA_i` [r]; part j of every h_i, side by side, is the input of `graB_j` [r, N / k], which
 * gives outputs j: `y = x·wᵀ + loraAlpha / (r + hybridR) · (… + (x·generalAᵀ)·generalBᵀ)`. The last term is
 * an ordinary LoRA of rank hybridR, if that is above 0.
 */
export const gralora = defineAdapter({
  method: 'gralora',
  reference:
    'Jung et al., GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning, 2025, arXiv:2505.20355',
  defaults: { r: 32, loraAlpha: 64, k: 2, hybridR: 0, dropout: 0 },
  trained: ['graA', 'graB', 'generalA', 'generalB'],
  shapes: ({ N, K, config: { r, k, hybridR } }) => ({
    graA: [k, K / k, r],
    graB: [k, r, N / k],
    ...(hybridR > 0 ? { generalA: [hybridR, K], generalB: [N, hybridR] } : {}),
  }),
  check: ({ N, K, config: { r, k, hybridR } }) => {
    if (!(k > 0) || N % k !== 0 || K % k !== 0 || r % k !== 0) {
      return ['k', `a divisor of K (${K}), of N (${N}) and of r (${r})`, String(k)];
    }
    return hybridR >= 0 ? undefined : ['hybridR', 'not negative', String(hybridR)];
  },
  init: (make) => ({
    graA: make.kaiming('graA', make.K / make.config.k),
    graB: make.zeros('graB'),
    ...(make.config.hybridR > 0
      ? { generalA: make.kaiming('generalA'), generalB: make.zeros('generalB') }
      : {}),
  }),
  prepare: ({ config: { r, k }, device }) => {
    const part = r / k;
    // [k, k, part] with its first two dimensions swapped.
    const index = Int32Array.from({ length: k * r }, (_, at) => {
      const [j, i] = [Math.floor(at / r), Math.floor((at % r) / part)];
      return i * r + j * part + (at % part);
    });
    return FeatureMap.permute(index, { device });
  },
  forward: (t, { x, w, bias, p, config, state, N, K }) => {
    const { r, k, loraAlpha, hybridR, dropout } = config;
    const scaling = loraAlpha / (r + hybridR);
    const lead = x.shape.slice(0, -1);
    const dropped = t.dropout(x, dropout);
    const parts = t.reshape(t.cast(dropped, 'f32'), [...lead, k, K / k]);
    const h = t.reshape(t.blockProduct(parts, p.graA), [...lead, k * r]);
    const mixed = t.reshape(t.features(h, state), [...lead, k, r]);
    const update = t.reshape(t.blockProduct(mixed, p.graB), [...lead, N]);
    const y =
      hybridR > 0
        ? t.expand(x, w, t.shrink(dropped, p.generalA), p.generalB, { scaling, bias })
        : t.linear(x, w, bias);
    return t.add(y, update, 1, scaling);
  },
  peft: {
    type: 'GRALORA',
    tensors: {
      graA: 'gralora_A',
      graB: 'gralora_B',
      generalA: 'gralora_A_general.weight',
      generalB: 'gralora_B_general.weight',
    },
    read: (config) => ({
      r: Number(config.r ?? 32),
      loraAlpha: Number(config.alpha ?? 64),
      k: Number(config.gralora_k ?? 2),
      hybridR: Number(config.hybrid_r ?? 0),
      dropout: Number(config.gralora_dropout ?? 0),
    }),
    write: ({ r, loraAlpha, k, hybridR, dropout }) => ({
      r,
      alpha: loraAlpha,
      gralora_k: k,
      hybrid_r: hybridR,
      gralora_dropout: dropout,
    }),
  },
});
