import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    adalora: (layer) => {
      const [a, b, e] = parts(layer, 'loraA', 'loraB', 'loraE');
      return lowRank(
        layer,
        b.scaleCols(e.data),
        a,
        layer.config.loraAlpha / (layer.config.r + 1e-5),
      );
    },
  },
  cases: {
    adalora: alpha,
  },
};
