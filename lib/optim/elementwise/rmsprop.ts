import { defineOptimizer } from '../definition/define.js';
import { negative, outsideUnit } from '../parts/checks.js';
import { squaresRule } from '../parts/rules.js';

/**
 * RMSprop (Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012), as in torch and bitsandbytes,
 * without momentum:
 *
 *   g ← g + weightDecay · p      v ← α v + (1 − α) g²      p ← p − lr · g / (√v + eps)
 */
export const rmsprop = defineOptimizer({
  optimizer: 'rmsprop',
  reference: 'Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012',
  defaults: { alpha: 0.99, eps: 1e-8 },
  check: (settings) => outsideUnit(settings, 'alpha') ?? negative(settings, 'eps'),
  notNegative: ['v'],
  rate: 0.3,
  state: ({ tensor }) => ({ v: tensor.shape }),
  update: (u) => {
    const { alpha, eps } = u.settings;
    squaresRule(u, u.state.v, { keep: alpha, share: 1 - alpha, eps });
  },
});
