import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    'private-lora': (layer) => {
      const [a, b, m] = parts(layer, 'a', 'b', 'm');
      return lowRank(layer, b.times(m), a, 1);
    },
  },
  cases: {
    'private-lora': { settings: { rA: 5, rB: 3 } },
  },
};
