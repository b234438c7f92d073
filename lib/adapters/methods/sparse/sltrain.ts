import { sparseUpdate } from '../../../autograd/sparse-update.js';
import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';
import { patternOfEntries, randomEntries } from '../../parts/sparse.js';

const countOf = (N: number, K: number, density: number): number => Math.trunc(N * K * density);

/**
 * A low-rank and a sparse part side by side: `y = x·wᵀ + scaling · (x · loraAᵀ) · loraBᵀ + x · scatter(values)ᵀ`, with entries at random
 * places that stay, drawn from `placesSeed`. Its authors train both from the beginning, over a base of zeros.
 */
export const sltrain = defineAdapter({
  method: 'sltrain',
  reference:
    'Han et al., SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining, 2024, arXiv:2406.02214',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0, density: 0.03, placesSeed: 1 },
  trained: ['loraA', 'loraB', 'values'],
  shapes: ({ N, K, config: { r, density } }) => ({
    loraA: [r, K],
    loraB: [N, r],
    values: [countOf(N, K, density)],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    values: make.zeros('values'),
  }),
  drawIndexes: (make) => {
    const { N, K, config } = make;
    const count = countOf(N, K, config.density);
    return { entries: randomEntries(N, K, count, config.placesSeed).sort() };
  },
  prepare: (make, { entries }) => patternOfEntries(make, entries as Int32Array),
  check: ({ N, K, config: { density } }) =>
    density <= 1 && countOf(N, K, density) > 0
      ? undefined
      : ['density', 'from 0 to 1 and such that an entry is trained', String(density)],
  forward: (t, { x, w, bias, p, state, config }) => {
    const h = t.shrink(x, p.loraA, { dropout: config.dropout });
    const y = t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
    return t.add(y, sparseUpdate(t, x, p.values, state));
  },
});
