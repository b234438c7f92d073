import { defineMerge } from '../definition/definition.js';
import { checkClamp } from '../parts/clamp.js';
import { weightedSum } from '../parts/elect.js';
import { checkRank } from '../parts/factors.js';
import { checkDensity, keepLargest } from '../parts/prune.js';
import { linear } from './linear.js';

const kReference = 'PEFT, add_weighted_adapter, combination_type "magnitude_prune"';

/** The weighted sum of the factors' ⌊density · n⌋ largest entries. */
export const magnitudePrune = defineMerge({
  merge: 'magnitude-prune',
  reference: kReference,
  defaults: { density: 0.5 },
  alone: linear,
  check: checkDensity,
  sift: (values, { density }) => keepLargest(values, density),
  entry: weightedSum,
});

/** {@link magnitudePrune} over the updates, with the leading triplets of the result. */
export const magnitudePruneSvd = defineMerge({
  merge: 'magnitude-prune-svd',
  reference: kReference,
  defaults: { density: 0.5, rank: 0, clamp: 0 },
  alone: linear,
  over: 'update',
  check: (settings) => checkDensity(settings) ?? checkRank(settings) ?? checkClamp(settings),
  sift: (values, { density }) => keepLargest(values, density),
  entry: weightedSum,
});
