import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { Tensor } from '../../../core/tensor.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../../../ops/matmul.js';
import { weightGrad } from '../../../ops/weight-grad.js';
import { defineAdapter } from '../../definition/method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

const widthOf = (K: number, groups: number): number => Math.ceil(K / groups);

/**
 * `x · aᵀ` that saves one number per group of features instead of x: the coefficient along `embed`. The
 * gradient of a uses the reconstruction, `dhᵀ · (scale · coefficients ⊗ embed)`; the gradient of x is
 * exact.
 */
function compressedShrink(t: Tape, x: Value, a: Value, groups: Tensor, scale: number): Value {
  const h = matmul(x.tensor, a.tensor, {});
  const coefficients = matmul(x.tensor, groups);
  return t.record(h, [x, a], [coefficients], (dh, pass) => {
    if (pass.wants(x)) pass.give(x, matmulInputGrad(dh, a.tensor));
    if (pass.wants(a)) {
      const like = matmulInputGrad(coefficients, groups);
      pass.give(a, multiplyAdd({ a: weightGrad(dh, like), alpha: scale }));
    }
  });
}

/**
 * LoRA whose first factor has an approximate gradient: of x it saves only one coefficient per group of
 * features for the backward pass, along one direction that all groups share. The forward pass is that
 * of LoRA.
 *
 * PEFT takes the direction from the first batch. Here a new adapter draws one; a folder contains its own.
 */
export const velora = defineAdapter({
  method: 'velora',
  reference:
    'Miles et al., VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections, 2024, arXiv:2405.17991',
  defaults: { r: 8, loraAlpha: 8, rslora: false, groups: 32, scale: 1 },
  trained: ['loraA', 'loraB'],
  frozen: ['embed'],
  shapes: ({ N, K, config: { r, groups } }) => ({
    loraA: [r, K],
    loraB: [N, r],
    embed: [widthOf(K, groups)],
  }),
  init: (make) => {
    const drawn = make.normal('embed', 1).readSync();
    const norm = Math.sqrt(drawn.reduce((sum, v) => sum + v * v, 0));
    return {
      loraA: make.kaiming('loraA'),
      loraB: make.zeros('loraB'),
      embed: make.values('embed', (i) => (drawn[i] as number) / norm),
    };
  },
  prepare: ({ K, config: { groups }, device }, _, { embed }) => {
    const direction = embed.readSync();
    const width = direction.length;
    // Row g: the direction in the features of group g.
    const values = new Float32Array(groups * K);
    for (let k = 0; k < K; k++) {
      values[Math.floor(k / width) * K + k] = direction[k % width] as number;
    }
    return { groups: Tensor.from(values, [groups, K], { device }) };
  },
  check: ({ K, config: { groups } }) =>
    Number.isInteger(groups) && groups >= 1 && groups <= K
      ? undefined
      : ['groups', `an integer from 1 to ${K}`, String(groups)],
  forward: (t, { x, w, bias, p, state, config }) => {
    const h = compressedShrink(t, t.cast(x, 'f32'), p.loraA, state.groups, config.scale);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf({ ...config, dropout: 0 }), bias });
  },
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ velora_config }) => velora_config !== undefined && velora_config !== null,
    tensors: { loraA: 'lora_A.weight', loraB: 'lora_B.weight', embed: 'lora_velora_embed' },
    read: (config, module) => {
      const { num_groups, scale } = config.velora_config as Record<string, unknown>;
      const { r, loraAlpha, rslora } = readAlpha(config, module);
      return {
        ...{ r, loraAlpha, rslora },
        groups: Number(num_groups ?? 32),
        scale: Number(scale ?? 1),
      };
    },
    write: ({ groups, scale, ...config }) => ({
      ...alphaFields({ ...config, dropout: 0 }),
      velora_config: { num_groups: groups, scale },
    }),
  },
});
