import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    salora: (layer) => {
      const [a, b, logAlpha] = parts(layer, 'loraA', 'loraB', 'logAlpha');
      const gate = logAlpha.data.map((v) => {
        const stretched = 1.2 / (1 + Math.exp(-v)) - 0.1;
        return Math.min(1, Math.max(0, stretched));
      });
      return lowRank(layer, b.scaleCols(gate), a, scaling(layer));
    },
  },
  cases: {
    salora: alpha,
  },
};
