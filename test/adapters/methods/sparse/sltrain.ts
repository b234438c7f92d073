import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { scattered, table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    sltrain: (layer) => {
      const [a, b, values] = parts(layer, 'loraA', 'loraB', 'values');
      const low = layer.w.plus(b.times(a), scaling(layer));
      return { weight: low.plus(scattered(layer, table(layer, 'entries'), values)) };
    },
  },
  cases: {
    sltrain: { settings: { r: 3, loraAlpha: 6, density: 0.1 } },
  },
};
