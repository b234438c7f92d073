import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import { table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    adamss: (layer) => {
      const { N, K, config } = layer;
      const [a, b, basis] = parts(layer, 'a', 'b', 'basis');
      const subspace = table(layer, 'subspace');
      const q = config.subspaceRank as number;
      const core = Matrix.of(N, a.cols, (n, k) => {
        let sum = 0;
        for (let j = 0; j < q; j++) sum += b.at(n, j) * a.at((subspace[n] as number) * q + j, k);
        return sum;
      });
      const weight = layer.w.plus(core.times(basis));
      if (!config.withBias) return { weight };
      const shift = core.times(parts(layer, 'basisBias')[0].transposed());
      return {
        weight: Matrix.of(N, K, (n, k) => weight.at(n, k)),
        bias: layer.bias.map((v, n) => v + shift.at(n, 0)),
      };
    },
  },
  cases: {
    adamss: { settings: { r: 7, subspaces: 3 } },
    'adamss/with the bias': { settings: { r: 7, subspaces: 3, subspaceRank: 2, withBias: true } },
  },
};
