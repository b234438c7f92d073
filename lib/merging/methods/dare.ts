import type { RefusedSetting } from '../../core/refused-setting.js';
import { defineMerge } from '../definition/definition.js';
import { checkClamp } from '../parts/clamp.js';
import { checkElection, disjointMean, weightedSum } from '../parts/elect.js';
import { checkRank } from '../parts/factors.js';
import { type Density, keepRandomly } from '../parts/prune.js';
import { linear } from './linear.js';

const kReference =
  'Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch, 2023, arXiv:2311.03099';

/** What is kept is divided by the density. */
const checkKept = ({ density }: Density): RefusedSetting | undefined =>
  density > 0 && density <= 1 ? undefined : ['density', 'in (0, 1]', String(density)];

/** DARE over the factors: entries are dropped at random, the others divided by the density, and summed. */
export const dareLinear = defineMerge({
  merge: 'dare-linear',
  reference: kReference,
  defaults: { density: 0.5, seed: 0 },
  alone: linear,
  check: (settings) => checkKept(settings),
  sift: (_, { density }, random) => keepRandomly(density, random),
  entry: weightedSum,
});

/** {@link dareLinear} with the election of signs of TIES. */
export const dareTies = defineMerge({
  merge: 'dare-ties',
  reference: kReference,
  defaults: { density: 0.5, sign: 'total', seed: 0 },
  alone: linear,
  check: (settings) => checkKept(settings) ?? checkElection(settings),
  sift: (_, { density }, random) => keepRandomly(density, random),
  entry: (values, weights, { sign }) => disjointMean(values, weights, sign),
});

/** {@link dareLinear} over the updates, with the leading triplets of the result. */
export const dareLinearSvd = defineMerge({
  merge: 'dare-linear-svd',
  reference: kReference,
  defaults: { density: 0.5, seed: 0, rank: 0, clamp: 0 },
  alone: linear,
  over: 'update',
  check: (settings) => checkKept(settings) ?? checkRank(settings) ?? checkClamp(settings),
  sift: (_, { density }, random) => keepRandomly(density, random),
  entry: weightedSum,
});

/** {@link dareTies} over the updates, with the leading triplets of the result. */
export const dareTiesSvd = defineMerge({
  merge: 'dare-ties-svd',
  reference: kReference,
  defaults: { density: 0.5, sign: 'total', seed: 0, rank: 0, clamp: 0 },
  alone: linear,
  over: 'update',
  check: (settings) =>
    checkKept(settings) ?? checkElection(settings) ?? checkRank(settings) ?? checkClamp(settings),
  sift: (_, { density }, random) => keepRandomly(density, random),
  entry: (values, weights, { sign }) => disjointMean(values, weights, sign),
});
