import { defineMerge } from '../definition/definition.js';
import { sumOfFactors } from '../parts/factors.js';

/**
 * FedAvg of LoRA: the averages of A and of B by the clients' shares (FedIT averages the factors so). Ranks and scalings must be
 * equal.
 */
export const fedavg = defineMerge({
  merge: 'fedavg',
  reference:
    'McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2016, arXiv:1602.05629',
  defaults: {},
  weights: 'shares',
  layer: (call) => sumOfFactors(call, call.weights, call.weights),
});
