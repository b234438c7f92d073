import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { fail } from '../../../core/errors.js';
import { full } from '../../../core/full.js';
import { Tensor } from '../../../core/tensor.js';
import { mapTensor, multiplyAdd } from '../../../ops/elementwise.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';
import { belowOne } from '../../parts/counts.js';

interface PolyConfig {
  readonly nTasks: number;
  readonly nSkills: number;
  readonly nSplits: number;
}

/** For every task, the weights of the skills in each split, summing to 1: [nTasks, nSplits · nSkills]. */
function taskWeights(t: Tape, logits: Value, config: PolyConfig, noise: Tensor | undefined): Value {
  const { nTasks, nSkills, nSplits } = config;
  const moved = noise === undefined ? logits : t.add(logits, t.own(noise));
  const open = t.reshape(t.map(moved, 'sigmoid'), [nTasks * nSplits, nSkills]);
  const share = t.map(t.sum(open, 1), 'reciprocal');
  return t.reshape(t.multiply(open, share), [nTasks, nSplits * nSkills]);
}

/** Logistic noise: the logits of a relaxed Bernoulli sample at temperature 1. */
function logisticNoise(shape: readonly number[], seed: number, device: Tensor['device']): Tensor {
  const u = Tensor.uniform(shape, { seed, device, low: 2 ** -24, high: 1 - 2 ** -24 });
  const rest = multiplyAdd({ a: u, alpha: -1, c: full([1], 1, { device }) });
  return multiplyAdd({ a: mapTensor(u, 'log'), c: mapTensor(rest, 'log'), beta: -1 });
}

/**
 * Every task mixes the factors of a few skills, split by split over the features. `inputs.tasks` [...,
 * nTasks] says which task a token belongs to (1 there, 0 elsewhere): `y = x·wᵀ + x · A_task · B_task / r`,
 * where split q of `A_task` is `Σₛ wₛ · loraA[q, s]`, and of `B_task` `Σₛ wₛ · loraB[q, s]`, with weights
 * from the task's logits. In training with a seed, the weights are sampled (relaxed Bernoulli).
 */
export const poly = defineAdapter({
  method: 'poly',
  reference: 'Ponti et al., Combining Modular Skills in Multitask Learning, 2022, arXiv:2202.13914',
  defaults: { r: 8, nTasks: 1, nSkills: 4, nSplits: 1 },
  trained: ['loraA', 'loraB', 'logits'],
  mergeable: false,
  check: ({ N, K, config }) => {
    const { nSplits } = config;
    if (N % nSplits === 0 && K % nSplits === 0) return belowOne(config, 'nTasks', 'nSkills');
    return ['nSplits', `a divisor of ${N} and ${K}`, String(nSplits)];
  },
  shapes: ({ N, K, config: { r, nTasks, nSkills, nSplits } }) => ({
    loraA: [nSplits, nSkills, K / nSplits, r],
    loraB: [nSplits, nSkills, r, N / nSplits],
    logits: [nTasks, nSplits * nSkills],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA', make.K / make.config.nSplits),
    loraB: make.zeros('loraB'),
    logits: make.uniform('logits', 1e-3),
  }),
  prepare: ({ N, K, device, config: { r, nSkills, nSplits } }) => {
    const blocks = nSplits * nSkills;
    const [d, e] = [K / nSplits, N / nSplits];
    const skillsOf = (width: number) =>
      Int32Array.from({ length: blocks * width }, (_, at) => {
        const split = Math.floor(at / (nSkills * width));
        return split * width + (at % width);
      });
    return {
      // Each split, once for every skill.
      copies: FeatureMap.gather(skillsOf(d), K, { device }),
      weights: FeatureMap.repeat(blocks, r, 'inner', { device }),
      ranks: FeatureMap.repeat(r, blocks, 'outer', { device }),
      sums: FeatureMap.repeat(r, blocks, 'outer', { device }),
      outputs: FeatureMap.gather(skillsOf(e), N, { device }),
    };
  },
  inputs: ['tasks'],
  forward: (t, { x, w, bias, p, config, state, inputs, training, seed, N, K }) => {
    const { r, nTasks, nSkills, nSplits } = config;
    const { tasks } = inputs;
    if (tasks === undefined) {
      const expected = `a tensor [..., ${nTasks}]`;
      return fail('ERR_VALUE', 'poly.forward', 'inputs.tasks', expected, 'none');
    }
    const noise =
      training && seed !== undefined
        ? logisticNoise(p.logits.shape, seed, p.logits.tensor.device)
        : undefined;
    const blocks = nSplits * nSkills;
    const leading = x.shape.slice(0, -1);
    const weights = t.features(
      t.product(tasks, taskWeights(t, p.logits, config, noise)),
      state.weights,
    );
    const [d, e] = [K / nSplits, N / nSplits];
    const splits = t.reshape(t.features(x, state.copies), [...leading, blocks, d]);
    const each = t.blockProduct(splits, t.reshape(p.loraA, [blocks, d, r]));
    const mixed = t.multiply(t.cast(t.reshape(each, [...leading, blocks * r]), 'f32'), weights);
    const h = t.features(mixed, state.sums.adjoint);
    const again = t.multiply(t.features(h, state.ranks), weights);
    const shares = t.reshape(again, [...leading, blocks, r]);
    const out = t.blockProduct(shares, t.reshape(p.loraB, [blocks, r, e]));
    const update = t.features(t.reshape(out, [...leading, blocks * e]), state.outputs.adjoint);
    return t.add(t.linear(x, w, bias), update, 1, 1 / r);
  },
  peft: {
    type: 'POLY',
    tensors: {
      loraA: 'poly_lora_A',
      loraB: 'poly_lora_B',
      logits: 'poly_router.module_logits',
    },
    read: ({ r, n_tasks, n_skills, n_splits }) => ({
      r: Number(r),
      nTasks: Number(n_tasks),
      nSkills: Number(n_skills),
      nSplits: Number(n_splits),
    }),
    write: ({ r, nTasks, nSkills, nSplits }) => ({
      r,
      n_tasks: nTasks,
      n_skills: nSkills,
      n_splits: nSplits,
    }),
  },
});
