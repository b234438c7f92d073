import { defineOptimizer } from '../definition/define.js';
import { adamCheck, outsideUnit } from '../parts/checks.js';
import { ademamixRule } from '../parts/rules.js';

/**
 * AdEMAMix (Pagliardini, Ablin and Grangier, The AdEMAMix Optimizer: Better, Faster, Older, 2024, arXiv:2409.03137), as
 * bitsandbytes has it without schedules of α and β₃: AdamW with a second, slower mean of gradients, which is not corrected
 * for its start.
 *
 *   m ← β₁ m + (1 − β₁) g      slow ← β₃ slow + (1 − β₃) g      v ← β₂ v + (1 − β₂) g²
 *   p ← p − lr · weightDecay · p − lr · (m / (1 − β₁ᵗ) + α · slow) / (√(v / (1 − β₂ᵗ)) + eps)
 */
export const ademamix = defineOptimizer({
  optimizer: 'ademamix',
  reference:
    'Pagliardini, Ablin and Grangier, The AdEMAMix Optimizer: Better, Faster, Older, 2024, arXiv:2409.03137',
  defaults: { beta1: 0.9, beta2: 0.999, beta3: 0.9999, alpha: 5, eps: 1e-8 },
  check: (settings) => adamCheck(settings) ?? outsideUnit(settings, 'beta3'),
  notNegative: ['v'],
  rate: 0.5,
  state: ({ tensor: { shape } }) => ({ m: shape, slow: shape, v: shape }),
  update: (u) => ademamixRule(u, u.state.m, u.state.slow, u.state.v, u.settings, 'before'),
});
