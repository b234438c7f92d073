/** Test settings of methods that route tokens to experts. */
import type { Row } from './settings.js';

export const ROUTED_ROWS: Readonly<Record<string, Row>> = {
  arrow: {
    settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 0, temperature: 0.7 },
    step: 1 / 512,
  },
  'arrow/top2': {
    settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 2 },
    step: 1 / 512,
  },
  dylora: { settings: { r: 6, loraAlpha: 6 } },
  'dylora/rank': { settings: { r: 6, loraAlpha: 6, rank: 4 } },
  hydralora: { settings: { experts: 3, r: 4, loraAlpha: 6 } },
  kadaptation: { settings: { n: 4, terms: 3, leftRank: 2, scale: 1.5 } },
  'kadaptation/whole': { settings: { n: 4, terms: 3, leftRank: 0, scale: 1.5 } },
  lily: { settings: { r: 4, experts: 3, scaling: 1.5 } },
  loramoe: { settings: { experts: 3, r: 2, loraAlpha: 4 } },
  // A small step: no token changes its experts.
  'loramoe/top2': { settings: { experts: 4, topK: 2, r: 2, loraAlpha: 4 }, step: 1 / 512 },
  // The same of a batch of many adapters.
  'loramoe/sparse': {
    settings: { experts: 4, topK: 2, sparse: true, r: 2, loraAlpha: 4 },
    step: 1 / 512,
  },
  multilora: {
    settings: { n: 2, r: 3 },
  },
  poly: {
    settings: { r: 3, nTasks: 3, nSkills: 2, nSplits: 2 },
    inputs: { tasks: (M) => [M, 3] },
  },
  'x-lora': {
    settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5] },
    inputs: { gates: (M) => [M, 3] },
  },
  'x-lora/batch': {
    settings: { ranks: [3, 1], scalings: [2, 1], globalScaling: 0.7 },
    inputs: { gates: () => [2] },
  },
  'x-lora/top2': {
    settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 2 },
    inputs: { gates: (M) => [M, 3] },
    step: 1 / 512,
  },
  'x-lora/softmax': {
    settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 2, softmaxTopK: true },
    inputs: { gates: (M) => [M, 3] },
    step: 1 / 512,
  },
};
