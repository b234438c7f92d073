import { svd } from '../../linalg/tensors/svd.js';
import { unmergeLora } from '../../ops/lora/merge.js';
import { defineStart } from '../definition/definition.js';
import { balanced } from '../parts/factors.js';
import { requireRank } from '../parts/rank.js';
import { chosenColumns, chosenRows } from '../parts/take.js';

/**
 * Segments of the spectrum of w for the experts of a mixture: expert e of E begins with the r triplets from e · min(N, K) / E on,
 * `loraA = √(S/(s·ρ)) · Vᵀ`, `loraB = U · √(S/(s·ρ))`. The base is w less the mean of the experts' updates, which an
 * undecided router gives. Of the weight alone, as in the authors' program (github.com/Facico/GOAT-PEFT), whose scaling is
 * √(3 · K / r): give `loraAlpha` for it.
 */
export const goat = defineStart({
  start: 'goat',
  reference:
    'Fan et al., Make LoRA Great Again: Boosting LoRA with Adaptive Singular Values and Mixture-of-Experts Optimization Alignment, 2025, arXiv:2502.16894',
  from: 'weight',
  defaults: { rho: 10 },
  adapters: ['loramoe'],
  replacesBase: true,
  check: ({ rho }) => (rho > 0 ? undefined : ['rho', 'above 0', String(rho)]),
  factors: ({ w, N, K, quantise }, { r, scaling, settings: { rho }, config }) => {
    const experts = config.experts as number;
    requireRank('goat', r, N, K, experts);
    const { u, s, v } = svd(w);
    const width = Math.floor(Math.min(N, K) / experts);
    const chosen = Array.from(
      { length: experts * r },
      (_, i) => Math.floor(i / r) * width + (i % r),
    );
    const part = {
      u: chosenColumns(u, chosen),
      s: Float64Array.from(chosen, (i) => s[i] as number),
      v: chosenRows(v, chosen),
    };
    const { loraA, loraB } = balanced(part, scaling * rho);
    const rest = unmergeLora(w.to({}), { loraA, loraB, scaling: scaling / experts }).weight;
    return { loraA, loraB, base: quantise(rest) };
  },
});
