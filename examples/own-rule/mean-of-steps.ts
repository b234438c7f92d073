/** A rule of one's own: `lowrank finetune --rule examples/own-rule/mean-of-steps.ts --set from=60`. */

import { defineRule } from 'lowrank';

export default defineRule({
  rule: 'mean-of-steps',
  reference: 'Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992',
  defaults: { from: 0 },
  check: ({ from }) => (from >= 0 ? undefined : ['from', 'at least 0', String(from)]),
  state: ({ parameters }) =>
    Object.fromEntries([...parameters].map(([name, { shape }]) => [name, shape])),
  after: ({ step, parameters, state, settings: { from } }) => {
    if (step <= from) return;
    for (const [name, parameter] of parameters) {
      const values = parameter.values();
      state[name]?.forEach((mean, i, all) => {
        all[i] = mean + ((values[i] ?? 0) - mean) / (step - from);
      });
    }
  },
  finish: ({ parameters, state }) => {
    for (const [name, parameter] of parameters)
      parameter.write(Float32Array.from(state[name] ?? []));
  },
});
