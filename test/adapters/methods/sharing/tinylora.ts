import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    tinylora: (layer) => {
      const [a, b, v, projection] = parts(layer, 'loraA', 'loraB', 'v', 'projection');
      const { r, u } = layer.config;
      const core = Matrix.of(r, r, (i, j) => {
        let sum = 0;
        for (let k = 0; k < u; k++) {
          sum += (v.data[k] as number) * (projection.data[(k * r + i) * r + j] as number);
        }
        return sum;
      });
      return lowRank(layer, b.times(core), a, 1);
    },
  },
  cases: {
    tinylora: { settings: { r: 3, u: 5 } },
  },
};
