import { defineStart } from '../definition/definition.js';

/** KaSA's own tensors, with the r smallest triplets that it subtracts taken from w before it is quantised. */
export const kasa = defineStart({
  start: 'kasa',
  reference:
    'Wang et al., KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models, 2024, arXiv:2412.06071',
  from: 'weight',
  defaults: {},
  adapters: ['kasa'],
  factors: () => ({}),
});
