import { defineRule } from '../definition/define.js';
import { below } from '../parts/checks.js';
import { mergeAndRestart } from '../parts/restart.js';

/** Settings of {@link periodicLora}. */
export interface PeriodicLoraSettings {
  /** Steps of a stage. */
  readonly every: number;
  /** Share of the update that stays in the adapter when a stage ends, in [0, 1). */
  readonly momentum: number;
}

/**
 * Stages of `every` steps. At the end of a stage, but not of the run, the share `1 − momentum` of the update goes into the base
 * and the rest stays in `loraB`, so that the model computes what it did. Without momentum a new adapter begins. The optimiser and
 * the schedule of the learning rate, warm-up included, start anew.
 */
export const periodicLora = defineRule<PeriodicLoraSettings>({
  rule: 'periodic-lora',
  reference:
    'Meng et al., PeriodicLoRA: Breaking the Low-Rank Bottleneck in LoRA Optimization, 2024, arXiv:2402.16141',
  defaults: { every: 40, momentum: 0 },
  claims: ['base', 'rate'],
  adapters: ['lora'],
  resetsOptimizer: true,
  check: ({ every, momentum }) =>
    below('every', every, 1) ??
    (momentum >= 0 && momentum < 1 ? undefined : ['momentum', 'in [0, 1)', String(momentum)]),
  rate: ({ step, steps, warmup, schedule, settings: { every } }) => {
    const begin = step - (step % every);
    const length = Math.min(every, steps - begin);
    return schedule(step - begin, Math.ceil((warmup * length) / steps), length);
  },
  after: (run) => {
    const { every, momentum } = run.settings;
    if (run.step % every === 0 && run.step < run.steps) mergeAndRestart(run, 1 - momentum);
  },
});
