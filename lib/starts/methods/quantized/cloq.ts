import { defineStart } from '../../definition/definition.js';
import { scaleRows } from '../../parts/factors.js';
import { damped, inputsOf } from '../../parts/inputs.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';
import { weightedRepair } from '../../parts/weighted-repair.js';

/**
 * The repair of the quantised weight by the Gram matrix of the inputs, `H = Σ xᵀx + damping · mean diagonal`: with
 * `((w − Q) · H^½)ᵣ = U · S · Vᵀ`, `loraB = U` and `loraA = S · Vᵀ · H^−½ / s`. The base is `Q = quantise(w)` in the run's format;
 * the paper's base is one of GPTQ, which a model's files may hold (`lowrank quantize`).
 */
export const cloq = defineStart({
  start: 'cloq',
  reference:
    'Deng et al., CLoQ: Enhancing Fine-Tuning of Quantized LLMs via Calibrated LoRA Initialization, 2025, arXiv:2501.18475',
  from: 'inputs',
  quantises: true,
  defaults: { damping: 0.01, iterations: 12 },
  check: (settings) =>
    settings.damping >= 0
      ? checkIterations(settings)
      : ['damping', 'at least 0', String(settings.damping)],
  factors: (layer, { r, scaling, seed, settings }) => {
    const second = damped(inputsOf(layer).gram, layer.K, settings.damping);
    const options = { r, seed, iterations: passesOf(settings) };
    const { u, s, v } = weightedRepair('cloq', layer, second, options);
    const sizes = s.map((value) => value / scaling);
    return { loraA: scaleRows(v, sizes), loraB: u };
  },
});
