import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    flora: (layer) => {
      const [a, b] = parts(layer, 'a', 'b');
      const product = a.transposed().times(b);
      return { weight: layer.w.map((v, n, k) => v * product.at(n, k)) };
    },
  },
  cases: {
    flora: { settings: { r: 3 } },
  },
};
