import { type Matrix, parts } from '../../../oracle/adapter-layer.js';
import { table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    unilora: (layer) => {
      const [theta, scalesA, scalesB] = parts(layer, 'theta', 'scalesA', 'scalesB');
      const gathered = (name: string, scales: Matrix) =>
        scales.map((v, i, j) => {
          const place = table(layer, name)[i * scales.cols + j] as number;
          return v * (theta.data[place] as number);
        });
      const [a, b] = [gathered('indexesA', scalesA), gathered('indexesB', scalesB)];
      return { weight: layer.w.plus(b.times(a)) };
    },
  },
  cases: {
    unilora: {
      settings: { r: 3, length: 31 },
      startsElsewhere: 'both factors come from one drawn vector',
    },
  },
};
