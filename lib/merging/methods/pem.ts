import { defineMerge } from '../definition/definition.js';
import { sumOfFactors } from '../parts/factors.js';

/**
 * Arithmetic of modules: `A = Σ |w| A_i`, `B = Σ w B_i`. Weights λ and 1 − λ add two adapters; −1 negates one, which changes the
 * sign of its B alone. Ranks and scalings must be equal, and the scaling stays.
 */
export const pem = defineMerge({
  merge: 'pem',
  reference:
    'Zhang et al., Composing Parameter-Efficient Modules with Arithmetic Operations, 2023, arXiv:2306.14870',
  defaults: {},
  layer: (call) => sumOfFactors(call, call.weights.map(Math.abs), call.weights),
});
