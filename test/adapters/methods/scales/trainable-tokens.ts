import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    'trainable-tokens': (layer) => {
      const [rows] = parts(layer, 'rows');
      const tokens = layer.config.tokens as number[];
      const weight = layer.w.map((v, n, k) =>
        tokens.includes(k) ? rows.at(tokens.indexOf(k), n) : v,
      );
      return { weight };
    },
  },
  cases: {
    'trainable-tokens': { settings: { tokens: [5, 0, 31] } },
  },
};
