import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    moslora: (layer) => {
      const [a, b, mixer] = parts(layer, 'loraA', 'loraB', 'mixer');
      return lowRank(layer, b.times(mixer), a, scaling(layer));
    },
  },
  cases: {
    moslora: alpha,
  },
};
