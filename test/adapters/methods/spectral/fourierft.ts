import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import { scattered, table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    fourierft: (layer) => {
      const { N, K, w, config } = layer;
      const spectrum = scattered(layer, table(layer, 'places'), parts(layer, 'spectrum')[0]);
      const size = { backward: N * K, ortho: Math.sqrt(N * K), forward: 1 }[config.norm as 'ortho'];
      const real = Matrix.of(N, K, (n, k) => {
        let sum = 0;
        for (let u = 0; u < N; u++) {
          for (let v = 0; v < K; v++) {
            const c = spectrum.at(u, v);
            if (c !== 0) sum += c * Math.cos(2 * Math.PI * ((u * n) / N + (v * k) / K));
          }
        }
        return sum / size;
      });
      return { weight: w.plus(real, config.scaling) };
    },
  },
  cases: {
    fourierft: {
      settings: { frequencies: 21, scaling: 20 },
      startsElsewhere: 'the paper draws the coefficients',
    },
    'fourierft/ortho': {
      settings: { frequencies: 21, scaling: 2, norm: 'ortho' },
      startsElsewhere: 'the paper draws the coefficients',
    },
  },
};
