import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    beft: (layer) => ({
      weight: layer.w,
      bias: layer.bias.map((v, i) => v + (parts(layer, 'delta')[0].data[i] as number)),
    }),
  },
  cases: {
    beft: {},
  },
};
