import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    full: (layer) => ({ weight: layer.w.plus(parts(layer, 'weight')[0]) }),
  },
  cases: {
    full: { settings: {} },
  },
};
