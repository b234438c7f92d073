import { defineAdapter } from './method.js';
import { patternOf } from './scaling.js';
import { randomEntries } from './sparse.js';
import { addSpectral, spectralOf } from './spectral.js';

/** A side of the coefficient matrix: even, and what is cut off of the reconstruction before it. */
const padded = (size: number): number => size + (size % 2);
const cut = (size: number): number => Math.floor((padded(size) - size) / 2);

/**
 * The Haar function of a coefficient's number along a side of that size: the first half of the numbers
 * are sums of two neighbours, the second half differences.
 */
function haar(size: number, detail: (number: number) => boolean) {
  const half = padded(size) / 2;
  return (id: number) => {
    const begin = 2 * (id % half) - cut(size);
    return (at: number): number => {
      if (at !== begin && at !== begin + 1) return 0;
      return at === begin || !detail(id) ? Math.SQRT1_2 : -Math.SQRT1_2;
    };
  };
}

/**
 * Coefficients of the update in wavelet space: `ΔW = scaling · IDWT2(scatter(spectrum))`, one level of the
 * Haar wavelet, or with `transform: false` entries of ΔW itself. Each coefficient moves a block of two by
 * two entries, so the update is a sum of products with fixed sparse tables.
 */
export const waveft = defineAdapter({
  method: 'waveft',
  reference:
    'Bilican et al., Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets, 2025, arXiv:2505.12532',
  defaults: { frequencies: 2592, scaling: 25, placesSeed: 777, transform: true },
  trained: ['spectrum'],
  shapes: ({ config: { frequencies } }) => ({ spectrum: [frequencies] }),
  init: (make) => ({ spectrum: make.zeros('spectrum') }),
  drawIndexes: ({ N, K, config: { frequencies, placesSeed } }) => ({
    places: randomEntries(N, K, frequencies, placesSeed),
  }),
  prepare: (make, { places }) => {
    const { N, K, config } = make;
    const table = places as Int32Array;
    const one = (offset: number) => (id: number) => (at: number) => (at === id - offset ? 1 : 0);
    // The peer names the bands of the quarters so that a coefficient in the right half is a difference
    // of rows, and one in the lower half a difference of columns.
    const [H, V] = [padded(N) / 2, padded(K) / 2];
    const rows = new Int32Array(table.length);
    const columns = new Int32Array(table.length);
    table.forEach((place, f) => {
      const i = Math.floor(place / K) + cut(N);
      const j = (place % K) + cut(K);
      const right = j >= V;
      const lower = i >= H;
      rows[f] = config.transform ? (i % H) + (right ? H : 0) : i;
      columns[f] = config.transform ? (j % V) + (lower ? V : 0) : j;
    });
    return spectralOf(make, rows, columns, [
      config.transform
        ? { left: haar(N, (id) => id >= H), right: haar(K, (id) => id >= V), sign: 1 }
        : { left: one(cut(N)), right: one(cut(K)), sign: 1 },
    ]);
  },
  check: ({ N, K, config: { frequencies } }) =>
    frequencies > 0 && frequencies <= N * K
      ? undefined
      : ['frequencies', `from 1 to ${N * K}`, String(frequencies)],
  forward: (t, { x, w, bias, p, state, config: { scaling } }) =>
    addSpectral(t, t.linear(x, w, bias), x, p.spectrum, state, scaling),
  peft: {
    type: 'WAVEFT',
    when: ({ wavelet_family, use_idwt, proportional_parameters }) =>
      (use_idwt === false || (wavelet_family ?? 'db1') === 'db1') &&
      proportional_parameters !== true,
    tensors: { spectrum: 'waveft_spectrum' },
    read: ({ n_frequency, scaling, random_loc_seed, use_idwt, n_frequency_pattern }, module) => ({
      frequencies: patternOf(n_frequency_pattern, module) ?? Number(n_frequency ?? 2592),
      scaling: Number(scaling ?? 25),
      placesSeed: Number(random_loc_seed ?? 777),
      transform: use_idwt !== false,
    }),
    write: ({ frequencies, scaling, placesSeed, transform }) => ({
      n_frequency: frequencies,
      scaling,
      random_loc_seed: placesSeed,
      use_idwt: transform,
      wavelet_family: 'db1',
    }),
  },
});
