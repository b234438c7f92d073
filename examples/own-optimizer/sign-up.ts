/** An optimiser of one's own: `lowrank finetune --optimizer examples/own-optimizer/sign-up.ts --set ratio=8`. */

import { defineOptimizer } from 'lowrank';

export default defineOptimizer({
  optimizer: 'sign-up',
  reference: 'nobody: an example of an optimiser of one’s own',
  defaults: { beta: 0.9, ratio: 4 },
  check: ({ ratio }) => (ratio > 0 ? undefined : ['ratio', 'above 0', String(ratio)]),
  rate: 0.1,
  group: ({ role }, { ratio }) => ({ rate: role === 'up' ? ratio : 1 }),
  state: ({ tensor }) => ({ mean: tensor.shape }),
  update: ({ p, g, state: { mean }, lr, weightDecay, settings: { beta } }) => {
    for (let i = 0; i < p.length; i++) {
      mean[i] = beta * (mean[i] ?? 0) + (1 - beta) * (g[i] ?? 0);
      p[i] = (p[i] ?? 0) * (1 - lr * weightDecay) - lr * Math.sign(mean[i] ?? 0);
    }
  },
});
