import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    lotr: (layer) => {
      const [v, core, u] = parts(layer, 'v', 'core', 'u');
      return lowRank(layer, u.times(core), v, layer.config.scale / layer.config.r);
    },
  },
  cases: {
    lotr: { settings: { r: 4, scale: 1.5 } },
  },
};
