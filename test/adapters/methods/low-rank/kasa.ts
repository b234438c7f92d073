import { parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    kasa: (layer) => {
      const [a, b, diag] = parts(layer, 'loraA', 'loraB', 'diag');
      const [tailA, tailB] = parts(layer, 'tailA', 'tailB');
      const { weight } = lowRank(layer, b.scaleCols(diag.data), a, scaling(layer));
      return { weight: weight.plus(tailB.times(tailA), -1) };
    },
  },
  cases: {
    kasa: { ...alpha, startsElsewhere: 'the smallest singular triplets are taken off' },
  },
};
