import { defineMerge } from '../definition/definition.js';
import { concatenated } from '../parts/factors.js';

/** FLoRA: the exact average of the clients' updates, with their factors stacked: rank Σr, shares and scalings in A. */
export const stacking = defineMerge({
  merge: 'stacking',
  reference:
    'Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations, 2024, arXiv:2409.05976',
  defaults: {},
  weights: 'shares',
  layer: ({ updates, weights }) =>
    concatenated(
      updates,
      weights.map((w, i) => w * (updates[i]?.scaling ?? 1)),
    ),
});
