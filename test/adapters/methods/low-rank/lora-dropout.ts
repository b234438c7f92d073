import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    'lora-dropout': (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return lowRank(layer, b, a, scaling(layer));
    },
  },
  cases: {
    'lora-dropout': { settings: { r: 4, loraAlpha: 6, p: 0 } },
  },
};
