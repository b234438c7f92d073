import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    aflora: (layer) => {
      const [a, b, d, out] = parts(layer, 'loraA', 'loraB', 'd', 'b');
      return lowRank(layer, b.scaleRows(out.data).scaleCols(d.data), a, 1);
    },
  },
  cases: {
    aflora: { settings: { r: 4 } },
  },
};
