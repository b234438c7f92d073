import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    'lora-fa': (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return lowRank(layer, b, a, scaling(layer));
    },
  },
  cases: {
    'lora-fa': alpha,
  },
};
