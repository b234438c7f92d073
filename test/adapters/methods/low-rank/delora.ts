import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank, norms } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    delora: (layer) => {
      const [a, b, lambda, wNorm] = parts(layer, 'loraA', 'loraB', 'lambda', 'wNorm');
      const [rows, cols] = [norms(a), norms(b.transposed())];
      const strength = rows.map(
        (norm, i) => lambda.at(0, 0) / (layer.config.r * norm * (cols[i] as number)),
      );
      return lowRank(layer, b.scaleCols(strength), a.scaleCols(wNorm.data), 1);
    },
  },
  cases: {
    delora: {
      settings: { r: 4, lambda: 3 },
    },
  },
};
