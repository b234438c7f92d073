import { defineMerge } from '../definition/definition.js';
import { checkClamp, clampFactors } from '../parts/clamp.js';
import { checkRank, truncatedSum } from '../parts/factors.js';
import { linear } from './linear.js';

/**
 * The nearest update of rank `rank` to `Σ w s² B A`, from the factors. The scaling s enters twice, as in PEFT, which multiplies the
 * weight by the scaling that the update has already; `task-arithmetic` has it once.
 */
export const svd = defineMerge({
  merge: 'svd',
  reference: 'PEFT, add_weighted_adapter, combination_type "svd"',
  defaults: { rank: 0, clamp: 0 },
  alone: linear,
  check: (settings) => checkRank(settings) ?? checkClamp(settings),
  layer: ({ updates, weights, settings: { rank, clamp } }) => {
    const all = weights.map((w, i) => w * (updates[i]?.scaling ?? 1) ** 2);
    return clampFactors(truncatedSum(updates, all, rank), clamp);
  },
});
