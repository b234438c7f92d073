import { defineStart } from '../definition/definition.js';

/** LoRA-XS's own tensors, with its factors from the triplets of w before it is quantised. */
export const loraXs = defineStart({
  start: 'lora-xs',
  reference:
    'Bałazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, 2024, arXiv:2405.17604',
  from: 'weight',
  defaults: {},
  adapters: ['lora-xs'],
  factors: () => ({}),
});
