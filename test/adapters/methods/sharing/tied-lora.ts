import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    'tied-lora': (layer) => {
      const [a, b, u, v] = parts(layer, 'a', 'b', 'u', 'v');
      return lowRank(layer, b.scaleRows(v.data).scaleCols(u.data), a, 1);
    },
  },
  cases: {
    'tied-lora': { settings: { r: 4 } },
  },
};
