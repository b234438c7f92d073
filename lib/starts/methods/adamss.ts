import { defineStart } from '../definition/definition.js';

/** AdaMSS' own tensors and clusters, from the triplets of w before it is quantised. */
export const adamss = defineStart({
  start: 'adamss',
  reference:
    'Zheng et al., AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning, 2025, NeurIPS 2025',
  from: 'weight',
  defaults: {},
  adapters: ['adamss'],
  factors: () => ({}),
});
