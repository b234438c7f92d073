import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import { table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    frod: (layer) => {
      const { K } = layer;
      const [lambda, values, v, u] = parts(layer, 'lambda', 'values', 'v', 'u');
      const indices = table(layer, 'indices');
      const half = indices.length / 2;
      const core = Matrix.of(K, K, (i, j) => (i === j ? (lambda.data[i] as number) : 0));
      for (let e = 0; e < half; e++) {
        const place = (indices[e] as number) * K + (indices[half + e] as number);
        core.data[place] = (core.data[place] as number) + (values.data[e] as number);
      }
      return { weight: u.times(core).times(v.transposed()) };
    },
  },
  cases: {
    frod: { settings: { sparseRate: 0.05 } },
  },
};
