import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    kadaptation: (layer) => {
      const [u, v] = parts(layer, 'u', 'v');
      const { n, terms, leftRank, scale } = layer.config;
      const { left, leftA, leftB } = layer.p;
      // Entry (row, col) of the left factor of a term: stored whole, or as a product.
      const entry = (i: number, row: number, col: number): number => {
        if (left !== undefined) return left.data[(i * n + row) * n + col] as number;
        let sum = 0;
        for (let s = 0; s < leftRank; s++) {
          const a = leftA?.data[(i * n + row) * leftRank + s] as number;
          sum += a * (leftB?.data[(i * leftRank + s) * n + col] as number);
        }
        return sum;
      };
      const [height, width] = [layer.N / n, layer.K / n];
      return {
        weight: layer.w.map((value, row, col) => {
          let sum = 0;
          for (let i = 0; i < terms; i++) {
            const outer = entry(i, Math.floor(row / height), Math.floor(col / width));
            sum += outer * u.at(row % height, i) * v.at(i, col % width);
          }
          return value + scale * sum;
        }),
      };
    },
  },
  cases: {
    kadaptation: { settings: { n: 4, terms: 3, leftRank: 2, scale: 1.5 } },
    'kadaptation/whole': { settings: { n: 4, terms: 3, leftRank: 0, scale: 1.5 } },
  },
};
