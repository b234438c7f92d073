import { parts } from '../../../oracle/adapter-layer.js';
import { expertsOf, mixture, softmaxTop } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    arrow: (layer) => {
      const [prototypes] = parts(layer, 'prototypes');
      const { topK, temperature } = layer.config;
      return {
        update: (x) => {
          const similarity = x.times(prototypes.transposed()).map(Math.abs);
          return mixture(
            x,
            softmaxTop(
              similarity.map((v) => v / temperature),
              topK,
            ),
            expertsOf(layer),
          );
        },
      };
    },
  },
  cases: {
    arrow: {
      settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 0, temperature: 0.7 },
      step: 1 / 512,
    },
    'arrow/top2': {
      settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 2 },
      step: 1 / 512,
    },
  },
};
