import { type Formula, Matrix } from '../../../oracle/adapter-layer.js';
import { added, kron, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const lokr: Formula = (layer) => {
  const { p, config } = layer;
  const factor = (name: string): Matrix =>
    p[name] ?? (p[`${name}A`] as Matrix).times(p[`${name}B`] as Matrix);
  const taps = (config.kernel as number[]).reduce((product, size) => product * size, 1);
  // w2 by row, channel and tap; of a Tucker product entry by entry.
  const second = (): Matrix => {
    const { t2, w2A, w2B } = p as Record<string, Matrix>;
    if (t2 !== undefined && w2A !== undefined && w2B !== undefined) {
      return Matrix.of(w2A.cols, w2B.cols * taps, (n, col) => {
        const [c, tap] = [Math.floor(col / taps), col % taps];
        return sum(config.r, (i) =>
          sum(config.r, (j) => {
            const core = t2.data[(i * config.r + j) * taps + tap] as number;
            return core * w2A.at(i, n) * w2B.at(j, c);
          }),
        );
      });
    }
    const w2 = factor('w2');
    const rows = layer.N / (factor('w1') as Matrix).rows;
    return new Matrix(rows, (w2.rows * w2.cols) / rows, w2.data);
  };
  const entry = kron(factor('w1'), second());
  return added(layer, (n, k) => (config.loraAlpha / config.r) * entry(n, k));
};

export const tests: MethodTests = {
  formulas: {
    lokr,
  },
  cases: {
    lokr: { settings: { r: 2, loraAlpha: 3 } },
    'lokr/whole': { settings: { r: 64, loraAlpha: 96 } },
    'lokr/both': { settings: { r: 1, loraAlpha: 2, decomposeBoth: true } },
    'lokr/left': { settings: { r: 5, loraAlpha: 7, factor: 12, decomposeBoth: true } },
    'lokr/kernel': { settings: { r: 64, loraAlpha: 96, kernel: [2, 2] } },
    'lokr/taps': { settings: { r: 1, loraAlpha: 3, kernel: [2, 2] } },
    'lokr/tucker': { settings: { r: 1, loraAlpha: 3, kernel: [4, 1], tucker: true } },
    'lokr/factor': { settings: { r: 3, loraAlpha: 4, factor: 3 } },
  },
};
