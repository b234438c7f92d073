import { Matrix } from '../../../oracle/adapter-layer.js';
import { hadamard } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    glora: ({ w, N, K, bias, p }) => {
      // A path is a product, a value a row, one value, or nothing.
      const path = (name: 'a' | 'b' | 'c', rows: number, cols: number): Matrix => {
        const [left, right, x] = [p[`${name}D`], p[`${name}U`], p[`${name}X`]];
        if (left !== undefined && right !== undefined) return left.times(right);
        return Matrix.of(rows, cols, (i) => x?.data[x.data.length > 1 ? i : 0] ?? 0);
      };
      const vector = (name: 'd' | 'e', n: number): number => {
        const values = p[name]?.data ?? [0];
        return values[values.length > 1 ? n : 0] as number;
      };
      const weight = w.plus(hadamard(w, path('a', N, K))).plus(path('b', N, K));
      const shift = w.times(path('c', K, 1));
      const shifted = Float64Array.from({ length: N }, (_, n) => {
        const b = bias[n] as number;
        return b + b * vector('d', n) + vector('e', n) + shift.at(n, 0);
      });
      return { weight, bias: shifted };
    },
  },
  cases: {
    glora: { settings: { r: 3 } },
    'glora/vectors': { settings: { pathAB: 'vector', pathC: 'vector', pathDE: 'vector' } },
    'glora/constants': { settings: { pathAB: 'constant', pathC: 'none', pathDE: 'constant' } },
    'glora/bias': { settings: { r: 3, pathAB: 'none', pathC: 'lora', pathDE: 'none' } },
    'glora/weight': { settings: { r: 3, pathAB: 'lora', pathC: 'none', pathDE: 'none' } },
    'glora/none': { settings: { pathAB: 'none', pathC: 'none', pathDE: 'none' } },
  },
};
