import { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import { defineStart } from '../definition/definition.js';
import { gradientOf } from '../parts/gradient.js';
import { checkIterations, passesOf } from '../parts/iterations.js';

/**
 * LoRA-XS in the space of the first step of full fine-tuning by Adam, `−rate · sign(dW) = U · S · Vᵀ`: the frozen factors are
 * `loraB = U` and `loraA = Vᵀ`, and the trained core is `S / s`. The base is w. As in the authors' program
 * (github.com/CERT-Lab/lora-sb).
 */
export const loraSb = defineStart({
  start: 'lora-sb',
  reference:
    'Ponkshe et al., Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning, 2024, arXiv:2411.19557',
  from: 'gradient',
  defaults: { rate: 1e-4, iterations: 12 },
  adapters: ['lora-xs'],
  check: (settings) =>
    settings.rate > 0 ? checkIterations(settings) : ['rate', 'above 0', String(settings.rate)],
  factors: (layer, { r, scaling, seed, settings }) => {
    const { N, K, device } = layer;
    const step = gradientOf(layer)
      .readSync()
      .map((value) => -settings.rate * Math.sign(value));
    const update = Tensor.from(step, [N, K], { device });
    const { u, s, v } = svd(update, { r, seed, iterations: passesOf(settings) });
    const core = Float32Array.from({ length: r * r }, (_, at) =>
      at % (r + 1) === 0 ? (s[at / (r + 1)] as number) / scaling : 0,
    );
    return { loraA: v, loraB: u, core: Tensor.from(core, [r, r], { device }) };
  },
});
