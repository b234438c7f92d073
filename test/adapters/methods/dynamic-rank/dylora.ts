import { parts } from '../../../oracle/adapter-layer.js';
import { columns, rows } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    dylora: (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      const { r, loraAlpha, rank } = layer.config;
      const kept = rank || r;
      const update = columns(b, 0, kept).times(rows(a, 0, kept));
      return { weight: layer.w.plus(update, loraAlpha / kept) };
    },
  },
  cases: {
    dylora: { settings: { r: 6, loraAlpha: 6 } },
    'dylora/rank': { settings: { r: 6, loraAlpha: 6, rank: 4 } },
  },
};
