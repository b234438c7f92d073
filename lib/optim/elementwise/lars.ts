import { defineOptimizer } from '../definition/define.js';
import { negative, outsideUnit } from '../parts/checks.js';
import { momentumRule, normOf, trustRatio } from '../parts/rules.js';

/**
 * LARS (You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017, arXiv:1708.03888) as bitsandbytes has
 * it: momentum whose step is shortened where its norm is above `trust` times that of the parameter. The paper scales the
 * learning rate of each layer to trust · ‖p‖ / ‖g‖ before the momentum.
 *
 * A parameter of zeros, as loraB is at first, takes a whole step; bitsandbytes would never move it.
 *
 *   m ← momentum · m + g      p ← p − lr · min(1, (trust · ‖p‖ + eps) / ‖m‖) · m
 */
export const lars = defineOptimizer({
  optimizer: 'lars',
  reference:
    'You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, 2017, arXiv:1708.03888',
  defaults: { momentum: 0.9, trust: 0.02, eps: 0 },
  check: (settings) => outsideUnit(settings, 'momentum') ?? negative(settings, 'trust', 'eps'),
  rate: 300,
  state: ({ tensor }) => ({ m: tensor.shape }),
  update: (u) => {
    const { momentum, trust, eps } = u.settings;
    const { m } = u.state;
    let sum = 0;
    for (let i = 0; i < u.g.length; i++) {
      sum += (momentum * (m[i] as number) + (u.g[i] as number)) ** 2;
    }
    const scale = trustRatio(trust * normOf(u.p) + eps, Math.sqrt(sum));
    momentumRule(u, m, { momentum, scale });
  },
});
