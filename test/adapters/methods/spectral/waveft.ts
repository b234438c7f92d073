import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import { scattered, table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const [root3, root7] = [Math.sqrt(3), Math.sqrt(7)];

const db2 = [1 + root3, 3 + root3, 3 - root3, 1 - root3].map((v) => v / (4 * Math.SQRT2));

/** Low-pass filters that have a closed form. */
const lowPass: Readonly<Record<string, readonly number[]>> = {
  db1: [Math.SQRT1_2, Math.SQRT1_2],
  db2,
  sym2: db2,
  coif1: [1 - root7, 5 + root7, 14 + 2 * root7, 14 - 2 * root7, 1 - root7, -3 + root7].map(
    (v) => v / (16 * Math.SQRT2),
  ),
};

/**
 * One level of the inverse transform of coefficients [N, K], as the peer has it: padded by the filter's length less two and to
 * even sides, cut into quarters, each spread by its filters, cut at both ends.
 */
function inverseWavelet(coefficients: Matrix, name: string): Matrix {
  const low = lowPass[name];
  if (low === undefined) throw new Error(`no filter of ${name}`);
  const L = low.length;
  const high = low.map((_, i) => (-1) ** i * (low[L - 1 - i] as number));
  const { rows: N, cols: K } = coefficients;
  const even = (size: number): number => size + (size % 2);
  const [rows, cols] = [even(N + L - 2), even(K + L - 2)];
  const [top, left] = [Math.floor((rows - N) / 2), Math.floor((cols - K) / 2)];
  const whole = Matrix.zeros(rows + L - 2, cols + L - 2);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < K; k++) {
      const value = coefficients.at(n, k);
      if (value === 0) continue;
      const [lower, right] = [n + top >= rows / 2, k + left >= cols / 2];
      const [i, j] = [(n + top) % (rows / 2), (k + left) % (cols / 2)];
      // The quarters on the right are differences of rows, those below of columns.
      const [down, across] = [right ? high : low, lower ? high : low];
      for (let p = 0; p < L; p++) {
        for (let q = 0; q < L; q++) {
          const at = (2 * i + p) * whole.cols + 2 * j + q;
          const part = value * (down[p] as number) * (across[q] as number);
          whole.data[at] = (whole.data[at] as number) + part;
        }
      }
    }
  }
  return Matrix.of(N, K, (n, k) => whole.at(n + L - 2, k + L - 2));
}

export const tests: MethodTests = {
  formulas: {
    waveft: (layer) => {
      const { w, config } = layer;
      const spectrum = scattered(layer, table(layer, 'places'), parts(layer, 'spectrum')[0]);
      if (!config.transform) return { weight: w.plus(spectrum, config.scaling) };
      return { weight: w.plus(inverseWavelet(spectrum, config.wavelet), config.scaling) };
    },
  },
  cases: {
    waveft: { settings: { frequencies: 30, scaling: 2 } },
    'waveft/odd sizes': { N: 23, K: 31, settings: { frequencies: 30, scaling: 2 } },
    'waveft/sym2': { settings: { frequencies: 30, scaling: 2, wavelet: 'sym2' } },
    'waveft/coif1, odd sizes': {
      N: 23,
      K: 31,
      settings: { frequencies: 90, scaling: 2, wavelet: 'coif1' },
    },
    'waveft/entries': { settings: { frequencies: 30, scaling: 2, transform: false } },
  },
};
