import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    sora: (layer) => {
      const [a, b, gate] = parts(layer, 'loraA', 'loraB', 'gate');
      return lowRank(layer, b.scaleCols(gate.data), a, scaling(layer));
    },
  },
  cases: {
    sora: alpha,
  },
};
