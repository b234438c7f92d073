import { parts } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    vera: (layer) => {
      const [a, b, lambdaB, lambdaD] = parts(layer, 'veraA', 'veraB', 'lambdaB', 'lambdaD');
      return lowRank(layer, b.scaleRows(lambdaB.data).scaleCols(lambdaD.data), a, 1);
    },
  },
  cases: {
    vera: { settings: { r: 6, dInitial: 0.2 } },
  },
};
