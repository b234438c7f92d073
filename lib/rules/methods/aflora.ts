import { defineRule } from '../definition/define.js';
import type { RuleParameter, RuleRun } from '../definition/run.js';
import { outside } from '../parts/checks.js';
import { observe, scoresOf, sensitivityShapes } from '../parts/sensitivity.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link aflora}. */
export interface AfloraSettings {
  /** Steps in which all is trained; below 1 a share of the run's. */
  readonly initial: number;
  /** Steps in which only the vectors are trained; below 1 a share of the run's. */
  readonly final: number;
  /** Of the smoothed gradients. */
  readonly beta1: number;
  /** Of their uncertainty. */
  readonly beta2: number;
}

type Run = RuleRun<AfloraSettings>;

/**
 * The factors of the adapter `aflora` stop one after another, those whose score is the smallest first: the mean over a factor of
 * the smoothed |g| times its uncertainty. The share that has stopped is `1 − (1 − (t − initial) / (steps − initial − final))³`.
 * The vectors go on.
 */
export const aflora = defineRule<AfloraSettings>({
  rule: 'aflora',
  reference:
    'Liu et al., AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of Large Models, 2024, arXiv:2403.13269',
  defaults: { initial: 0.1, final: 0.3, beta1: 0.85, beta2: 0.95 },
  claims: ['step'],
  adapters: ['aflora'],
  keepsGradients: true,
  check: ({ initial, final, beta1, beta2 }, { steps }) =>
    noSteps('initial', initial) ??
    noSteps('final', final) ??
    outside('beta1', beta1, 0, 1) ??
    outside('beta2', beta2, 0, 1) ??
    (stepsOf(initial, steps) + stepsOf(final, steps) < steps
      ? undefined
      : ['initial and final', `below the steps (${steps}) together`, `${initial} and ${final}`]),
  state: (run) => ({
    ...sensitivityShapes(factorsOf(run)),
    ...Object.fromEntries(factorsOf(run).map(({ name }) => [`stopped/${name}`, [1]])),
  }),
  trains: ({ state }, name) => state[`stopped/${name}`]?.[0] !== 1,
  after: (run) => {
    const { step, steps, settings, state } = run;
    const factors = factorsOf(run);
    const moving = factors.filter(({ name }) => state[`stopped/${name}`]?.[0] !== 1);
    observe(run, moving, settings, 'gradient');
    const first = stepsOf(settings.initial, steps);
    const length = steps - first - stepsOf(settings.final, steps);
    const progress = Math.min(1, Math.max(0, (step - first) / length));
    const due = Math.floor(factors.length * (1 - (1 - progress) ** 3));
    const scored = moving
      .map(({ name }) => ({ name, score: mean(scoresOf(run, name)) }))
      .sort((a, b) => a.score - b.score);
    for (const { name } of scored.slice(0, Math.max(0, due - factors.length + moving.length))) {
      state[`stopped/${name}`]?.fill(1);
    }
  },
});

const factorsOf = ({ parameters }: Run): readonly RuleParameter[] =>
  [...parameters.values()].filter(({ role }) => role === 'down' || role === 'up');

const mean = (values: Float64Array) =>
  values.reduce((sum, value) => sum + value, 0) / values.length;
