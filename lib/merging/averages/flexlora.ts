import { defineMerge } from '../definition/definition.js';
import { checkRank, truncatedSum } from '../parts/factors.js';

/**
 * FlexLoRA: the average of the clients' updates `Σ p s B A`, and the nearest update of a client's rank to it. Clients may have
 * different ranks; call it once for each rank. The SVD comes from the factors.
 */
export const flexlora = defineMerge({
  merge: 'flexlora',
  reference:
    'Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources, 2024, arXiv:2402.11505',
  defaults: { rank: 0 },
  weights: 'shares',
  check: checkRank,
  layer: ({ updates, weights, settings: { rank } }) =>
    truncatedSum(
      updates,
      weights.map((w, i) => w * (updates[i]?.scaling ?? 1)),
      rank,
    ),
});
