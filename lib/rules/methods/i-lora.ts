import { defineRule } from '../definition/define.js';
import { outside } from '../parts/checks.js';

/** Settings of {@link iLora}. */
export interface ILoraSettings {
  /** Share of the slow adapter that a step leaves. */
  readonly keep: number;
  /** Weight of the distance between the features of both. */
  readonly weight: number;
}

/**
 * Two memories: the adapter that is trained is the fast one, and a slow one follows it, `slow ← keep · slow + (1 − keep) · fast`. The
 * loss has `weight` times the mean squared difference between the features of the model with either. The slow one is what is
 * written. The authors hold features of earlier tasks' examples; here they are those of the step.
 */
export const iLora = defineRule<ILoraSettings>({
  rule: 'i-lora',
  reference:
    'Ren et al., Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient Tuning, 2024, arXiv:2402.18865',
  defaults: { keep: 0.95, weight: 0.1 },
  check: ({ keep, weight }) =>
    outside('keep', keep, 0, 1) ??
    (weight >= 0 ? undefined : ['weight', 'at least 0', String(weight)]),
  state: ({ parameters }) =>
    Object.fromEntries([...parameters].map(([name, { shape }]) => [name, shape])),
  prepare: ({ parameters, state }) => {
    for (const [name, parameter] of parameters) state[name]?.set(parameter.values());
  },
  anchor: ({ parameters, state, settings: { weight } }) => {
    if (weight === 0) return undefined;
    const slow = [...parameters.keys()].map(
      (name) => [name, Float32Array.from(state[name] ?? [])] as const,
    );
    return { values: new Map(slow), weight };
  },
  after: ({ parameters, state, settings: { keep } }) => {
    for (const [name, parameter] of parameters) {
      const slow = state[name] as Float64Array;
      const fast = parameter.values();
      for (let i = 0; i < slow.length; i++) {
        slow[i] = keep * (slow[i] as number) + (1 - keep) * (fast[i] as number);
      }
    }
  },
  finish: ({ parameters, state }) => {
    for (const [name, parameter] of parameters) {
      parameter.write(Float32Array.from(state[name] as Float64Array));
    }
  },
});
