import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    'lora-xs': (layer) => {
      const [a, b, core] = parts(layer, 'loraA', 'loraB', 'core');
      return lowRank(layer, b.times(core), a, scaling(layer));
    },
  },
  cases: {
    'lora-xs': { ...alpha, startsElsewhere: 'the paper draws the core, near zero' },
  },
};
