import type { Tensor } from '../../core/tensor.js';
import { adamwStep } from '../../ops/optimizer-step.js';
import { defineOptimizer } from '../definition/define.js';
import { adamCheck } from '../parts/checks.js';

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
  reference: 'Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
  check: adamCheck,
  notNegative: ['v'],
  state: ({ tensor }) => ({ m: tensor.shape, v: tensor.shape }),
  capturable: true,
  step: ({ updates, settings, step, lr, captured, norm, maxNorm }) => {
    const { beta1, beta2, eps } = settings;
    const of = (name: string) => updates.map(({ state }) => state[name] as Tensor);
    adamwStep(
      updates.map(({ parameter }) => parameter.tensor),
      updates.map(({ gradient }) => gradient),
      of('m'),
      of('v'),
      {
        lr: captured?.lr ?? lr,
        step: captured?.stepsDone ?? step,
        betas: [beta1, beta2],
        eps,
        weightDecay: updates.map(({ weightDecay }) => weightDecay),
        lrScale: updates.map(({ rate }) => rate),
        norm,
        ...(maxNorm === undefined ? {} : { maxNorm }),
      },
    );
  },
});
