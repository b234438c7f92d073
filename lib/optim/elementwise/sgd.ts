import { defineOptimizer } from '../definition/define.js';
import { outsideUnit } from '../parts/checks.js';
import { momentumRule } from '../parts/rules.js';

/**
 * Stochastic gradient descent (Robbins and Monro, A Stochastic Approximation Method, 1951), with momentum (Polyak, 1964) or
 * Nesterov's (Sutskever and others, On the importance of initialization and momentum in deep learning, 2013), as
 * `torch.optim.SGD` without dampening:
 *
 *   g ← g + weightDecay · p      m ← momentum · m + g      p ← p − lr · m, or p − lr · (g + momentum · m)
 */
export const sgd = defineOptimizer({
  optimizer: 'sgd',
  reference: 'Robbins and Monro, A Stochastic Approximation Method, 1951',
  defaults: { momentum: 0.9, nesterov: false },
  check: (settings) => outsideUnit(settings, 'momentum'),
  rate: 30,
  state: ({ tensor }) => ({ m: tensor.shape }),
  update: (u) => momentumRule(u, u.state.m, u.settings),
});
