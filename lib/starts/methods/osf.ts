import { defineStart } from '../definition/definition.js';

/** OSF's own triplets, those of w before it is quantised. */
export const osf = defineStart({
  start: 'osf',
  reference:
    'Nayak et al., Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning, 2025, arXiv:2504.07097',
  from: 'weight',
  defaults: {},
  adapters: ['osf'],
  factors: () => ({}),
});
