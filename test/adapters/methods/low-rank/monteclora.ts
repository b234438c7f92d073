import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    // Without a seed: the mean of its draws.
    monteclora: (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return lowRank(layer, b, a, scaling(layer));
    },
  },
  cases: {
    monteclora: { settings: { r: 4, loraAlpha: 6, samples: 3 } },
  },
};
