import { defineMerge } from '../definition/definition.js';
import { weightedSum } from '../parts/elect.js';

/**
 * The weighted sum of the factors: `A = Σ √|w s| A_i`, `B = Σ √|w s| B_i` with the adapter's scaling s; a negative weight puts
 * the sign into A. Ranks must be equal. The update is not the sum of the updates: it has the products of every B_i with every A_j.
 */
export const linear = defineMerge({
  merge: 'linear',
  reference: 'PEFT, add_weighted_adapter, combination_type "linear"',
  defaults: {},
  entry: weightedSum,
});
