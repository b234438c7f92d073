import { parts } from '../../../oracle/adapter-layer.js';
import { hadamard } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    hira: (layer) => {
      const [a, b] = parts(layer, 'hiraA', 'hiraB');
      return { weight: layer.w.plus(hadamard(layer.w, b.times(a))) };
    },
  },
  cases: {
    hira: { settings: { r: 4 } },
  },
};
