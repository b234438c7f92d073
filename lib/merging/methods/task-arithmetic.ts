import { defineMerge } from '../definition/definition.js';
import { checkRank, concatenated, truncatedSum } from '../parts/factors.js';

/**
 * The sum of task vectors `Σ w s B A`: exact with the rank Σr, or the nearest of rank `rank`. A negative weight forgets a
 * task; one adapter alone with the weight −1 is its negation.
 */
export const taskArithmetic = defineMerge({
  merge: 'task-arithmetic',
  reference: 'Ilharco et al., Editing Models with Task Arithmetic, 2022, arXiv:2212.04089',
  defaults: { rank: 0 },
  check: checkRank,
  layer: ({ updates, weights, settings: { rank } }) => {
    const all = weights.map((w, i) => w * (updates[i]?.scaling ?? 1));
    return rank === 0 ? concatenated(updates, all) : truncatedSum(updates, all, rank);
  },
});
