import { FeatureMap, mapFeatures } from '../../../ops/feature-map.js';
import { matmulInputGrad } from '../../../ops/matmul.js';
import { defineAdapter } from '../../definition/method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

/** The factor c of the formula below, for each pool. */
const kPools: Readonly<Record<string, (K: number, groupSize: number) => number>> = {
  groups: (K, groupSize) => K / groupSize ** 2,
  mean: (_, groupSize) => 1 / groupSize,
  size: () => 1,
};

const factorOf = (K: number, { pool, groupSize }: { pool: string; groupSize: number }): number =>
  kPools[pool]?.(K, groupSize) as number;

/**
 * Quantisation-aware LoRA: the adapter sees the sums of groups of `groupSize` neighbouring features, so its
 * update is constant within a group. If the blocks of an int4 weight divide the groups, the weight's zero-points
 * can take up the update without loss:
 * `y = x·wᵀ + scaling · (c · groupsum(dropout(x))·loraAᵀ)·loraBᵀ`, loraA [r, K / groupSize].
 *
 * The sources differ in c, which `pool` selects. `groups`, the default, is PEFT's: the mean of a group times the number of
 * groups, c = K / groupSize². `mean` is that of the authors' program (github.com/yuhuixu1993/qa-lora): the mean, c = 1 /
 * groupSize. `size` is the paper's algorithm 1: the mean times the size of a group, c = 1. In a PEFT folder lora_alpha is
 * scaled so that PEFT computes the same. Dropout is applied to x, as in PEFT; the authors' program applies it after the
 * pool.
 */
export const qalora = defineAdapter({
  method: 'qalora',
  reference:
    'Xu et al., QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models, 2023, arXiv:2309.14717',
  defaults: { r: 8, loraAlpha: 8, rslora: false, dropout: 0, groupSize: 16, pool: 'groups' },
  trained: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r, groupSize } }) => ({ loraA: [r, K / groupSize], loraB: [N, r] }),
  check: ({ K, config: { groupSize, pool } }) => {
    if (!Object.hasOwn(kPools, pool)) return ['pool', 'groups, mean or size', `"${pool}"`];
    return groupSize > 0 && K % groupSize === 0
      ? undefined
      : ['groupSize', `a divisor of K (${K})`, String(groupSize)];
  },
  init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
  prepare: ({ K, config: { groupSize }, device }) =>
    FeatureMap.groupSum(K, K / groupSize, { device }),
  forward: (t, { x, w, bias, p, config, state, K }) => {
    const alpha = factorOf(K, config);
    const pooled = t.features(t.dropout(x, config.dropout), state, { alpha, dtype: 'f32' });
    const h = t.matmul(pooled, p.loraA);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
  zeroPointUpdate: ({ loraA, loraB }, { K, config }, blocksize) => {
    const times = config.groupSize / blocksize;
    if (!Number.isInteger(times)) return undefined;
    const groups = matmulInputGrad(loraB.to({ dtype: 'f32' }), loraA.to({ dtype: 'f32' }));
    const { device } = groups;
    using spread = FeatureMap.repeat(K / config.groupSize, times, 'inner', { device });
    return mapFeatures(groups, spread, { alpha: factorOf(K, config) * scalingOf(config) });
  },
  peft: {
    type: 'LORA',
    caveat: () =>
      'PEFT has QA-LoRA only for GPTQ base layers: for other layers it reads the folder as LoRA and rejects its shapes',
    patterns: kAlphaPatterns,
    when: ({ use_qalora }) => use_qalora === true,
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight' },
    read: (config, module) => ({
      ...readAlpha(config, module),
      groupSize: Number(config.qalora_group_size ?? 16),
      pool: 'groups',
    }),
    write: (config, _, __, { inFeatures: K }) => ({
      ...alphaFields({
        ...config,
        loraAlpha:
          (config.loraAlpha * factorOf(K, config)) / factorOf(K, { ...config, pool: 'groups' }),
      }),
      use_qalora: true,
      qalora_group_size: config.groupSize,
    }),
  },
});
