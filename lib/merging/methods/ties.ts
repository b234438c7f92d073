import { defineMerge } from '../definition/definition.js';
import { checkClamp } from '../parts/clamp.js';
import { checkElection, disjointMean } from '../parts/elect.js';
import { checkRank } from '../parts/factors.js';
import { checkDensity, keepLargest } from '../parts/prune.js';
import { linear } from './linear.js';

const kReference =
  'Yadav et al., TIES-Merging: Resolving Interference When Merging Models, 2023, arXiv:2306.01708';

/**
 * TIES over the factors, as in PEFT: each adapter keeps its ⌊density · n⌋ largest entries, each entry elects a sign, and the
 * entries of that sign are averaged.
 */
export const ties = defineMerge({
  merge: 'ties',
  reference: kReference,
  defaults: { density: 0.2, sign: 'total' },
  alone: linear,
  check: (settings) => checkDensity(settings) ?? checkElection(settings),
  sift: (values, { density }) => keepLargest(values, density),
  entry: (values, weights, { sign }) => disjointMean(values, weights, sign),
});

/** {@link ties} over the updates, with the leading triplets of the result. */
export const tiesSvd = defineMerge({
  merge: 'ties-svd',
  reference: kReference,
  defaults: { density: 0.2, sign: 'total', rank: 0, clamp: 0 },
  alone: linear,
  over: 'update',
  check: (settings) =>
    checkDensity(settings) ??
    checkElection(settings) ??
    checkRank(settings) ??
    checkClamp(settings),
  sift: (values, { density }) => keepLargest(values, density),
  entry: (values, weights, { sign }) => disjointMean(values, weights, sign),
});
