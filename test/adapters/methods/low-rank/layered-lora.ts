import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    'layered-lora': (layer) => {
      const [a, b, pastA, pastB] = parts(layer, 'loraA', 'loraB', 'pastA', 'pastB');
      const { r, loraAlpha } = layer.config;
      return { weight: layer.w.plus(pastB.times(pastA)).plus(b.times(a), loraAlpha / r) };
    },
  },
  cases: {
    'layered-lora': { settings: { r: 3, pastRank: 2 } },
  },
};
