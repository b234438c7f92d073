import { parts, scaling } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    'l-lora': (layer) => {
      const [a0, b0, deltaA, deltaB] = parts(layer, 'a0', 'b0', 'deltaA', 'deltaB');
      const update = b0.times(a0).plus(deltaB.times(a0)).plus(b0.times(deltaA));
      return { weight: layer.w.plus(update, scaling(layer)) };
    },
  },
  cases: {
    'l-lora': alpha,
  },
};
