import { defineRule } from '../definition/define.js';
import type { RuleParameter } from '../definition/run.js';
import { below } from '../parts/checks.js';
import { largest } from '../parts/prune.js';

/** Settings of {@link relora}. */
export interface ReloraSettings {
  /** Steps between two restarts. */
  readonly every: number;
  /** Steps of the learning rate's way back after a restart. */
  readonly rewarm: number;
  /** Share of each state of the optimiser that a restart forgets: the entries of the smallest size. */
  readonly prune: number;
}

/**
 * Merge and restart: every `every` steps the update goes into the base, `loraA` is drawn anew and `loraB` is 0, the optimiser
 * forgets the share `prune` of the entries of each state, those of the smallest size, and the learning rate starts from its
 * `rewarm`-th part and is back on its schedule after `rewarm` steps. The sum of many updates of rank r has a higher rank. The
 * counter of the optimiser's steps goes on, as in the authors' program. There is no restart after the last step: the last update
 * stays an adapter. The authors prune each state alone; here an entry keeps its states where all of them are large, because a
 * first moment without its second is a step of m / ε while the gradient of `loraA` is still 0.
 */
export const relora = defineRule<ReloraSettings>({
  rule: 'relora',
  reference:
    'Lialin et al., ReLoRA: High-Rank Training Through Low-Rank Updates, 2023, arXiv:2307.05695',
  defaults: { every: 40, rewarm: 5, prune: 0.99 },
  claims: ['base', 'rate'],
  adapters: ['lora'],
  resetsOptimizer: true,
  writesStates: true,
  check: ({ every, rewarm, prune }) =>
    below('every', every, 1) ??
    below('rewarm', rewarm, 0) ??
    (rewarm < every ? undefined : ['rewarm', `below every (${every})`, String(rewarm)]) ??
    (prune >= 0 && prune <= 1 ? undefined : ['prune', 'in [0, 1]', String(prune)]),
  rate: ({ step, schedule, settings: { every, rewarm } }) => {
    const since = step % every;
    if (step < every || since >= rewarm) return schedule(step);
    return (schedule(step - since + rewarm) * (since + 1)) / rewarm;
  },
  after: ({ step, steps, layers, seedOf, settings: { every, prune } }) => {
    if (step % every !== 0 || step >= steps) return;
    for (const [i, layer] of layers.entries()) {
      layer.merge();
      const fresh = layer.initial(seedOf('relora', step, i));
      for (const [part, parameter] of Object.entries(layer.parameters)) {
        parameter.write(fresh[part] as Float32Array);
        forget(parameter, prune);
      }
    }
  },
});

/** Sets the states of the entries to 0 of which one is not among the largest of its kind. */
function forget(parameter: RuleParameter, share: number): void {
  const size = parameter.values().length;
  const states = parameter.states
    .map((name) => ({ name, values: parameter.state(name) }))
    .filter(({ values }) => values.length === size);
  const kept = states.map(({ values }) => largest(values, share));
  for (const { name, values } of states) {
    const left = values.map((value, i) => (kept.every((own) => own[i] === 1) ? value : 0));
    parameter.writeState(name, left);
  }
}
