import { parts } from '../../../oracle/adapter-layer.js';
import { rows } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    multilora: (layer) => {
      const [a, b, scale] = parts(layer, 'loraA', 'loraB', 'scale');
      const { n, r } = layer.config;
      const { N } = layer;
      let weight = layer.w;
      for (let i = 0; i < n; i++) {
        const own = rows(b, i * N, (i + 1) * N).times(rows(a, i * r, (i + 1) * r));
        weight = weight.plus(own.scaleRows(rows(scale, i, i + 1).data));
      }
      return { weight };
    },
  },
  cases: {
    multilora: {
      settings: { n: 2, r: 3 },
    },
  },
};
