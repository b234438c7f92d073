import { defineMerge } from '../definition/definition.js';
import { concatenated } from '../parts/factors.js';
import { linear } from './linear.js';

/** The exact weighted sum of the updates `Σ w s B A` of rank Σr: the factors side by side, with `w s` in A. */
export const cat = defineMerge({
  merge: 'cat',
  reference: 'PEFT, add_weighted_adapter, combination_type "cat"',
  defaults: {},
  alone: linear,
  layer: ({ updates, weights }) =>
    concatenated(
      updates,
      weights.map((w, i) => w * (updates[i]?.scaling ?? 1)),
    ),
});
