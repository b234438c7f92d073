import { defineOptimizer } from '../definition/define.js';
import { outsideUnit } from '../parts/checks.js';
import { lionRule } from '../parts/rules.js';

/**
 * Lion (Chen and others, Symbolic Discovery of Optimization Algorithms, 2023, arXiv:2302.06675), one state:
 *
 *   p ← p − lr · (sign(β₁ m + (1 − β₁) g) + weightDecay · p)      m ← β₂ m + (1 − β₂) g
 */
export const lion = defineOptimizer({
  optimizer: 'lion',
  reference:
    'Chen and others, Symbolic Discovery of Optimization Algorithms, 2023, arXiv:2302.06675',
  defaults: { beta1: 0.9, beta2: 0.99 },
  check: (settings) => outsideUnit(settings, 'beta1', 'beta2'),
  rate: 0.1,
  state: ({ tensor }) => ({ m: tensor.shape }),
  update: (u) => lionRule(u, u.state.m, u.settings),
});
