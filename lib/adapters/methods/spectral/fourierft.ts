import { defineAdapter } from '../../definition/method.js';
import { patternOf } from '../../parts/scaling.js';
import { randomEntries } from '../../parts/sparse.js';
import { addSpectral, spectralOf } from './spectral.js';

/**
 * Coefficients of the update at some frequencies of its two-dimensional Fourier transform:
 * `ΔW = scaling · Re(IDFT2(scatter(spectrum)))`. With `cos(a + b) = cos a cos b - sin a sin b` that is a sum of two
 * products with fixed tables of the frequencies' cosines and sines, so no transform is run.
 *
 * The spectrum starts normally distributed, as in the paper and in PEFT: a new adapter is not the
 * base model, and `scaling` sets its distance.
 */
export const fourierft = defineAdapter({
  method: 'fourierft',
  reference:
    'Gao et al., Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, 2024, arXiv:2405.03003',
  defaults: { frequencies: 1000, scaling: 150, placesSeed: 777, norm: 'backward' },
  trained: ['spectrum'],
  shapes: ({ config: { frequencies } }) => ({ spectrum: [frequencies] }),
  init: (make) => ({ spectrum: make.normal('spectrum', 1) }),
  drawIndexes: ({ N, K, config: { frequencies, placesSeed } }) => ({
    places: randomEntries(N, K, frequencies, placesSeed),
  }),
  prepare: (make, { places }) => {
    const { N, K } = make;
    const table = places as Int32Array;
    const wave = (f: (angle: number) => number, size: number) => (id: number) => (at: number) =>
      f((2 * Math.PI * ((id * at) % size)) / size);
    return spectralOf(
      make,
      table.map((place) => Math.floor(place / K)),
      table.map((place) => place % K),
      [
        { left: wave(Math.cos, N), right: wave(Math.cos, K), sign: 1 },
        { left: wave(Math.sin, N), right: wave(Math.sin, K), sign: -1 },
      ],
    );
  },
  check: ({ N, K, config: { frequencies, norm } }) => {
    if (!(frequencies > 0 && frequencies <= N * K)) {
      return ['frequencies', `from 1 to ${N * K}`, String(frequencies)];
    }
    if (!['backward', 'ortho', 'forward'].includes(norm)) {
      return ['norm', 'backward, ortho or forward', `"${norm}"`];
    }
    return undefined;
  },
  forward: (t, { x, w, bias, p, state, N, K, config: { scaling, norm } }) => {
    const size = norm === 'backward' ? N * K : norm === 'ortho' ? Math.sqrt(N * K) : 1;
    return addSpectral(t, t.linear(x, w, bias), x, p.spectrum, state, scaling / size);
  },
  peft: {
    type: 'FOURIERFT',
    patterns: { n_frequency: 'n_frequency_pattern' },
    tensors: { spectrum: 'fourierft_spectrum' },
    read: ({ n_frequency, scaling, random_loc_seed, ifft2_norm, n_frequency_pattern }, module) => ({
      frequencies: patternOf(n_frequency_pattern, module) ?? Number(n_frequency ?? 1000),
      scaling: Number(scaling ?? 150),
      placesSeed: Number(random_loc_seed ?? 777),
      norm: String(ifft2_norm ?? 'backward'),
    }),
    // PEFT 0.20 supports only the norm 'backward', and drops unknown fields.
    write: ({ frequencies, scaling, placesSeed, norm }) => ({
      n_frequency: frequencies,
      scaling,
      random_loc_seed: placesSeed,
      ...(norm === 'backward' ? {} : { ifft2_norm: norm }),
    }),
    caveat: ({ norm }) =>
      norm === 'backward'
        ? undefined
        : `PEFT 0.20 has no ifft2_norm: it computes with "backward" in place of "${norm}"`,
  },
});
