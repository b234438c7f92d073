import { defineOptimizer } from '../definition/define.js';
import { negative } from '../parts/checks.js';
import { squaresRule } from '../parts/rules.js';

/**
 * Adagrad (Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, 2011), as in
 * torch and bitsandbytes, with a constant learning rate:
 *
 *   g ← g + weightDecay · p      v ← v + g²      p ← p − lr · g / (√v + eps)
 */
export const adagrad = defineOptimizer({
  optimizer: 'adagrad',
  reference:
    'Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, 2011',
  defaults: { eps: 1e-10 },
  check: (settings) => negative(settings, 'eps'),
  notNegative: ['v'],
  rate: 3,
  state: ({ tensor }) => ({ v: tensor.shape }),
  update: (u) => squaresRule(u, u.state.v, { keep: 1, share: 1, eps: u.settings.eps }),
});
