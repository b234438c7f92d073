import { defineOptimizer } from './optimizer.js';

/** Constants of {@link adamw}. */
export interface AdamwSettings {
  /** Decay of the mean of gradients. */
  readonly beta1: number;
  /** Decay of the mean of their squares. */
  readonly beta2: number;
  readonly eps: number;
}

/**
 * AdamW with decoupled weight decay (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
 * arXiv:1711.05101), as in torch. With the gradient g after clipping, in step t:
 *
 *   m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²
 *   p ← p − lr · weightDecay · p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps)
 */
export const adamw = defineOptimizer<AdamwSettings>({
  optimizer: 'adamw',
  reference: 'Loshchilov and Hutter, 2019, arXiv:1711.05101',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
  state: ({ tensor }) => ({ m: tensor.shape, v: tensor.shape }),
  step: ({ updates, settings, step, lr, norm, maxNorm }) => {
    const { beta1, beta2, eps } = settings;
    const [length = 0] = norm.readSync();
    if (!Number.isFinite(length)) return;
    const factor = maxNorm === undefined ? 1 : Math.min(1, maxNorm / (length + 1e-6));
    for (const { parameter, gradient, state, rate, weightDecay } of updates) {
      const [p, g, m, v] = [parameter.tensor, gradient, state.m, state.v].map((t) => t!.readSync());
      for (let i = 0; i < p!.length; i++) {
        const gi = g![i]! * factor;
        m![i] = beta1 * m![i]! + (1 - beta1) * gi;
        v![i] = beta2 * v![i]! + (1 - beta2) * gi * gi;
        const r = lr * rate;
        p![i] =
          p![i]! -
          r * weightDecay * p![i]! -
          ((r / (1 - beta1 ** step)) * m![i]!) / (Math.sqrt(v![i]! / (1 - beta2 ** step)) + eps);
      }
      parameter.tensor.write(p!);
      state.m!.write(m!);
      state.v!.write(v!);
    }
  },
});
