import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    'scaled-lora': (layer) => {
      const [a, b, scale] = parts(layer, 'loraA', 'loraB', 'scale');
      return lowRank(layer, b, a.scaleCols(scale.data), scaling(layer));
    },
  },
  cases: { 'scaled-lora': alpha },
};
