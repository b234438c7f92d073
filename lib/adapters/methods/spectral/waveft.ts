import { fail } from '../../../core/errors.js';
import { defineAdapter } from '../../definition/method.js';
import { patternOf } from '../../parts/scaling.js';
import { randomEntries } from '../../parts/sparse.js';
import { addSpectral, spectralOf } from './spectral.js';
import { kWavelets, waveletFilter } from './wavelets.js';

/** How many rows and columns of coefficients extend over the edge: as PEFT pads for an even side. */
const reachOf = (filter: readonly number[]): number => filter.length - 2;
const padded = (size: number, filter: readonly number[]): number =>
  size + (size % 2) + reachOf(filter);

/**
 * The function of a coefficient's number along a side of that size: the first half of the numbers are shifts by two of the
 * low-pass filter, the second half of the high-pass filter.
 */
function shifts(size: number, filter: readonly number[], detail: (number: number) => boolean) {
  const half = padded(size, filter) / 2;
  const last = filter.length - 1;
  return (id: number) => {
    const begin = 2 * (id % half) - reachOf(filter);
    return (at: number): number => {
      const i = at - begin;
      if (i < 0 || i > last) return 0;
      if (!detail(id)) return filter[i] as number;
      return (i % 2 === 0 ? 1 : -1) * (filter[last - i] as number);
    };
  };
}

/** @throws ERR_UNSUPPORTED for a wavelet whose filter the library lacks */
function familyOf(family: unknown): string {
  if (typeof family === 'string' && waveletFilter(family) !== undefined) return family;
  const got = JSON.stringify(family) ?? 'none';
  return fail('ERR_UNSUPPORTED', 'adapterFromPeft', 'wavelet_family', `one of ${kWavelets}`, got);
}

/**
 * Coefficients of the update in wavelet space: `ΔW = scaling · IDWT2(scatter(spectrum))`, one level of an orthogonal wavelet,
 * or with `transform: false` entries of ΔW itself. Each coefficient affects a block of as many rows and columns as the filter
 * has values, so the update is a sum of products with fixed sparse tables.
 *
 * `wavelet` is one of db1 (Haar's) to db10, sym2 to sym10 and coif1 to coif3, with PyWavelets' filters. PEFT names more, but has
 * no filters for them, or for coif4 and coif5 other filters than the wavelets', so a folder with one is rejected.
 */
export const waveft = defineAdapter({
  method: 'waveft',
  reference:
    'Bilican et al., Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets, 2025, arXiv:2505.12532',
  defaults: {
    frequencies: 2592,
    scaling: 25,
    placesSeed: 777,
    transform: true,
    wavelet: 'db1' as string,
  },
  trained: ['spectrum'],
  shapes: ({ config: { frequencies } }) => ({ spectrum: [frequencies] }),
  init: (make) => ({ spectrum: make.zeros('spectrum') }),
  drawIndexes: ({ N, K, config: { frequencies, placesSeed } }) => ({
    places: randomEntries(N, K, frequencies, placesSeed),
  }),
  prepare: (make, { places }) => {
    const { N, K, config } = make;
    const table = places as Int32Array;
    if (!config.transform) {
      const one = (id: number) => (at: number) => (at === id ? 1 : 0);
      const rows = table.map((place) => Math.floor(place / K));
      const columns = table.map((place) => place % K);
      return spectralOf(make, rows, columns, [{ left: one, right: one, sign: 1 }]);
    }
    const filter = waveletFilter(config.wavelet) as readonly number[];
    const [H, V] = [padded(N, filter) / 2, padded(K, filter) / 2];
    const edge = reachOf(filter) / 2;
    // PEFT names the bands of the quarters so that a coefficient in the right half is a difference of
    // rows, and one in the lower half a difference of columns.
    const rows = new Int32Array(table.length);
    const columns = new Int32Array(table.length);
    table.forEach((place, f) => {
      const i = Math.floor(place / K) + edge;
      const j = (place % K) + edge;
      rows[f] = (i % H) + (j >= V ? H : 0);
      columns[f] = (j % V) + (i >= H ? V : 0);
    });
    return spectralOf(make, rows, columns, [
      {
        left: shifts(N, filter, (id) => id >= H),
        right: shifts(K, filter, (id) => id >= V),
        sign: 1,
      },
    ]);
  },
  check: ({ N, K, config: { frequencies, wavelet } }) => {
    if (waveletFilter(wavelet) === undefined)
      return ['wavelet', `one of ${kWavelets}`, `"${wavelet}"`];
    return frequencies > 0 && frequencies <= N * K
      ? undefined
      : ['frequencies', `from 1 to ${N * K}`, String(frequencies)];
  },
  forward: (t, { x, w, bias, p, state, config: { scaling } }) =>
    addSpectral(t, t.linear(x, w, bias), x, p.spectrum, state, scaling),
  peft: {
    type: 'WAVEFT',
    patterns: { n_frequency: 'n_frequency_pattern' },
    tensors: { spectrum: 'waveft_spectrum' },
    read: (config, module, shapeOf) => {
      const transform = config.use_idwt !== false;
      // If each layer has a share by its size, the stored tensor gives it.
      const share = config.proportional_parameters === true ? shapeOf('spectrum')?.[0] : undefined;
      const own = patternOf(config.n_frequency_pattern, module);
      return {
        frequencies: share ?? own ?? Number(config.n_frequency ?? 2592),
        scaling: Number(config.scaling ?? 25),
        placesSeed: Number(config.random_loc_seed ?? 777),
        transform,
        // Without a transform the family has no effect.
        wavelet: transform ? familyOf(config.wavelet_family ?? 'db1') : 'db1',
      };
    },
    write: ({ frequencies, scaling, placesSeed, transform, wavelet }) => ({
      n_frequency: frequencies,
      scaling,
      random_loc_seed: placesSeed,
      use_idwt: transform,
      wavelet_family: wavelet,
    }),
  },
});
