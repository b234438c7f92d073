import { defineMerge } from '../definition/definition.js';
import { sumOfFactors } from '../parts/factors.js';

/**
 * The moving average of the factors: from the first adapter on, `mean ← decay · mean + (1 − decay) · next` with each that follows.
 * I-LoRA keeps it as the long-term memory beside the adapter that is trained.
 */
export const ema = defineMerge({
  merge: 'ema',
  reference:
    'Ren et al., Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient Tuning, 2024, arXiv:2402.18865',
  defaults: { decay: 0.99 },
  weights: 'none',
  check: ({ decay }) =>
    decay >= 0 && decay <= 1 ? undefined : ['decay', 'in [0, 1]', String(decay)],
  layer: (call) => {
    const last = call.updates.length - 1;
    const shares = call.updates.map((_, i) =>
      i === 0
        ? call.settings.decay ** last
        : (1 - call.settings.decay) * call.settings.decay ** (last - i),
    );
    return sumOfFactors(call, shares, shares);
  },
});
