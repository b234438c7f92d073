import { parts } from '../../../oracle/adapter-layer.js';
import { scattered, table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    supertuning: (layer) => ({
      weight: layer.w.plus(scattered(layer, table(layer, 'entries'), parts(layer, 'values')[0])),
    }),
  },
  cases: {
    supertuning: { settings: { sparsity: 0.9 } },
  },
};
