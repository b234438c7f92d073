import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    pvera: (layer) => {
      const [a, b, lambdaB, lambdaD] = parts(layer, 'veraA', 'veraB', 'lambdaB', 'lambdaD');
      const mean = Matrix.of(
        a.rows / 2,
        a.cols,
        (i, j) => a.at(i, j) * (lambdaD.data[i] as number),
      );
      return { weight: layer.w.plus(b.scaleRows(lambdaB.data).times(mean)) };
    },
  },
  cases: {
    pvera: { settings: { r: 5, dInitial: 0.2 } },
  },
};
