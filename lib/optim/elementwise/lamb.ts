import { defineOptimizer } from '../definition/define.js';
import { adamCheck, negative } from '../parts/checks.js';
import { adamRule, normOf, trustRatio } from '../parts/rules.js';

/**
 * LAMB (You and others, Large Batch Optimization for Deep Learning, 2020, arXiv:1904.00962) as bitsandbytes has it: AdamW
 * for CPUs: AdamW whose step is shortened where u is longer than `most` times the parameter. The paper scales every step to
 * ‖p‖, with the decay in it; bitsandbytes' kernels for GPUs correct the bias of u.
 *
 * A parameter of zeros, as loraB is at first, takes a whole step; bitsandbytes would never move it.
 *
 *   u = m / (√v + eps)      p ← p − lr · min(1, most · ‖p‖ / ‖u‖) · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps), after the decay
 */
export const lamb = defineOptimizer({
  optimizer: 'lamb',
  reference:
    'You and others, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020, arXiv:1904.00962',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-8, most: 1 },
  check: (settings) => adamCheck(settings) ?? negative(settings, 'most'),
  notNegative: ['v'],
  state: ({ tensor: { shape } }) => ({ m: shape, v: shape }),
  update: (u) => {
    const { beta1, beta2, eps, most } = u.settings;
    const { m, v } = u.state;
    let sum = 0;
    for (let i = 0; i < u.g.length; i++) {
      const gradient = u.g[i] as number;
      const mean = beta1 * (m[i] as number) + (1 - beta1) * gradient;
      const square = beta2 * (v[i] as number) + (1 - beta2) * gradient * gradient;
      sum += (mean / (Math.sqrt(square) + eps)) ** 2;
    }
    const scale = trustRatio(most * normOf(u.p), Math.sqrt(sum));
    adamRule(u, m, v, u.settings, { decay: 'before', scale });
  },
});
