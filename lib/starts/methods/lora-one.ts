import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';
import { scaleColumns, scaleRows } from '../parts/factors.js';
import { gradientOf } from '../parts/gradient.js';
import { checkIterations, passesOf } from '../parts/iterations.js';

/**
 * The leading triplets of the negative first gradient, so that the adapter begins with the first step of full fine-tuning:
 * `−dW = U · S · Vᵀ`, `loraB = U · √(S/S₁) / √γ`, `loraA = √(S/S₁) · Vᵀ / √γ`. The base is w, as in the authors' program
 * (github.com/YuanheZ/LoRA-One). Their training also preconditions the gradients of both factors.
 */
export const loraOne = defineStart({
  start: 'lora-one',
  reference:
    'Zhang et al., LoRA-One: One-Step Full Gradient Could Suffice for Fine-Tuning Large Language Models, Provably and Efficiently, 2025, arXiv:2502.01235',
  from: 'gradient',
  defaults: { gamma: 128, iterations: 12 },
  check: (settings) =>
    settings.gamma > 0 ? checkIterations(settings) : ['gamma', 'above 0', String(settings.gamma)],
  factors: (layer, { r, seed, settings }) => {
    const dw = gradientOf(layer);
    const { u, s, v } = svd(dw, { r, seed, iterations: passesOf(settings) });
    const top = s[0] as number;
    const size = s.map((value) => (top > 0 ? Math.sqrt(value / top / settings.gamma) : 0));
    return {
      loraA: scaleRows(v, size),
      loraB: scaleColumns(
        u,
        size.map((value) => -value),
      ),
    };
  },
});
