import { type Matrix, parts } from '../../../oracle/adapter-layer.js';
import { hadamard } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    loha: (layer) => {
      const [a1, b1, a2, b2] = parts(layer, 'w1A', 'w1B', 'w2A', 'w2B');
      const { loraAlpha, r, kernel } = layer.config;
      const taps = (kernel as number[]).reduce((product, size) => product * size, 1);
      if (taps > 1) {
        // Entry by entry, channel c and tap k of a column.
        const sum = (core: Matrix, a: Matrix, b: Matrix, n: number, c: number, k: number) => {
          let total = 0;
          for (let i = 0; i < r; i++) {
            for (let j = 0; j < r; j++) {
              total += (core.data[(i * r + j) * taps + k] as number) * a.at(i, n) * b.at(j, c);
            }
          }
          return total;
        };
        const [t1, t2] = parts(layer, 't1', 't2');
        const weight = layer.w.map((v, n, col) => {
          const [c, k] = [Math.floor(col / taps), col % taps];
          return v + (loraAlpha / r) * sum(t1, a1, b1, n, c, k) * sum(t2, a2, b2, n, c, k);
        });
        return { weight };
      }
      return { weight: layer.w.plus(hadamard(a1.times(b1), a2.times(b2)), loraAlpha / r) };
    },
  },
  cases: {
    loha: { settings: { r: 3, loraAlpha: 6 } },
    'loha/tucker': { settings: { r: 3, loraAlpha: 6, kernel: [4, 2] } },
  },
};
