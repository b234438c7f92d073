import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';
import { below, outside } from '../parts/checks.js';
import { silence } from '../parts/gates.js';
import { addOrthogonality } from '../parts/orthogonal.js';
import { observe, scoresOf, sensitivityShapes } from '../parts/sensitivity.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link adalora}. */
export interface AdaloraSettings {
  /** Mean rank of a layer in the end. */
  readonly target: number;
  /** Steps with all ranks; below 1 a share of the run's. */
  readonly initial: number;
  /** Steps with the ranks that are left; below 1 a share of the run's. */
  readonly final: number;
  /** Steps between two choices of ranks. */
  readonly every: number;
  /** Of the sensitivity. */
  readonly beta1: number;
  /** Of its uncertainty. */
  readonly beta2: number;
  /** Weight of the penalty that keeps the factors orthonormal. */
  readonly orthogonal: number;
}

type Run = RuleRun<AdaloraSettings>;

/**
 * The budget of AdaLoRA. Each triplet (row of `loraA`, entry of `loraE`, column of `loraB`) has a score: the sum of the smoothed
 * sensitivities times their uncertainties, means over the row and the column. The budget falls from r ranks a layer to `target`
 * with a cubic curve, and every `every` steps the triplets with the smallest scores of all layers have their `loraE` set to 0.
 * They may come back until the `final` steps begin; then they stay 0, and the folder leaves them out. PEFT's allocator, with
 * its numbers.
 */
export const adalora = defineRule<AdaloraSettings>({
  rule: 'adalora',
  reference:
    'Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, 2023, arXiv:2303.10512',
  defaults: {
    target: 4,
    initial: 0.1,
    final: 0.3,
    every: 5,
    beta1: 0.85,
    beta2: 0.85,
    orthogonal: 0.5,
  },
  claims: ['shapes'],
  adapters: ['adalora'],
  keepsGradients: true,
  check: ({ target, initial, final, every, beta1, beta2, orthogonal }, { steps }) =>
    below('target', target, 1) ??
    noSteps('initial', initial) ??
    noSteps('final', final) ??
    below('every', every, 1) ??
    outside('beta1', beta1, 0, 1) ??
    outside('beta2', beta2, 0, 1) ??
    (orthogonal >= 0 ? undefined : ['orthogonal', 'at least 0', String(orthogonal)]) ??
    (stepsOf(initial, steps) + stepsOf(final, steps) < steps
      ? undefined
      : ['initial and final', `below the steps (${steps}) together`, `${initial} and ${final}`]),
  state: ({ parameters, layers }) => ({
    ...sensitivityShapes(parameters.values()),
    ...Object.fromEntries(layers.map(({ module, r }) => [`kept/${module}`, [r]])),
  }),
  gradients: (run) => addOrthogonality(run, run.settings.orthogonal),
  after: (run) => {
    const { step, steps, settings, parameters, layers } = run;
    const last = steps - stepsOf(settings.final, steps);
    if (step < last) observe(run, parameters.values(), settings);
    if (step > last) {
      for (const layer of layers) silence(layer, keptOf(run, layer));
      return;
    }
    const cut = layers.reduce((sum, { r }) => sum + r, 0) - budgetOf(run);
    const due = step > stepsOf(settings.initial, steps) && step % settings.every === 0;
    if (!(due || step === last)) return;
    const scores = layers.map((layer) => tripletScores(run, layer));
    const limit = cut < 1 ? Number.NEGATIVE_INFINITY : smallest(scores, cut);
    for (const [i, layer] of layers.entries()) {
      const kept = keptOf(run, layer);
      for (const [k, score] of (scores[i] as Float64Array).entries())
        kept[k] = score > limit ? 1 : 0;
      silence(layer, kept);
    }
  },
  finish: (run) => {
    for (const layer of run.layers) layer.keepRanks(keptOf(run, layer));
  },
});

const keptOf = ({ state }: Run, { module }: RuleLayer) => state[`kept/${module}`] as Float64Array;

/** Ranks of all layers together that a step may keep. */
function budgetOf({ step, steps, layers, settings }: Run): number {
  const whole = layers.reduce((sum, { r }) => sum + r, 0);
  const target = settings.target * layers.length;
  const [first, final] = [settings.initial, settings.final].map((own) => stepsOf(own, steps));
  const last = steps - (final as number);
  if (step <= (first as number)) return whole;
  if (step > last) return target;
  const left = 1 - (step - (first as number)) / (last - (first as number));
  return Math.trunc((whole - target) * left ** 3 + target);
}

/** The score of each triplet of a layer. */
function tripletScores(run: Run, { r, N, K, module }: RuleLayer): Float64Array {
  const [a, b, e] = ['loraA', 'loraB', 'loraE'].map((part) =>
    scoresOf(run, `${module}.${part}`),
  ) as [Float64Array, Float64Array, Float64Array];
  return e.map((score, i) => {
    let [row, column] = [0, 0];
    for (let k = 0; k < K; k++) row += a[i * K + k] as number;
    for (let n = 0; n < N; n++) column += b[n * r + i] as number;
    return score + row / K + column / N;
  });
}

/** The k-th smallest of all values. */
function smallest(values: readonly Float64Array[], k: number): number {
  const sorted = Float64Array.from(values.flatMap((own) => [...own])).sort();
  return sorted[k - 1] as number;
}
