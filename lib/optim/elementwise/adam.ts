import { defineOptimizer } from '../definition/define.js';
import { adamCheck } from '../parts/checks.js';
import { adamRule } from '../parts/rules.js';

/**
 * Adam (Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, arXiv:1412.6980) with weight decay in the gradient,
 * as `torch.optim.Adam`. With `amsgrad`, v̂ is the largest v so far (Reddi and others, 2018, arXiv:1904.09237):
 *
 *   g ← g + weightDecay · p      m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²
 *   p ← p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps)
 */
export const adam = defineOptimizer({
  optimizer: 'adam',
  reference: 'Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, arXiv:1412.6980',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-8, amsgrad: false },
  check: adamCheck,
  notNegative: ['v', 'largest'],
  state: ({ tensor: { shape } }, { amsgrad }) => ({
    m: shape,
    v: shape,
    largest: amsgrad ? shape : [0],
  }),
  update: (u) => {
    const { m, v, largest } = u.state;
    const all = u.settings.amsgrad ? { largest } : {};
    adamRule(u, m, v, u.settings, { decay: 'l2', ...all });
  },
});
