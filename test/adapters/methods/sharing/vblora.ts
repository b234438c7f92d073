import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import { table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

/** VB-LoRA: rows of the bank, weighted by a softmax of the chosen logits. */
function mixtures(logits: Matrix, bank: Matrix, top: Int32Array, k: number): Matrix {
  const rows = top.length / k;
  return Matrix.of(rows, bank.cols, (row, col) => {
    const chosen = [...top.slice(row * k, (row + 1) * k)];
    const e = chosen.map((j) => Math.exp(logits.data[row * bank.rows + j] as number));
    const sum = e.reduce((a, b) => a + b, 0);
    return chosen.reduce((v, j, i) => v + ((e[i] as number) / sum) * bank.at(j, col), 0);
  });
}

export const tests: MethodTests = {
  formulas: {
    vblora: (layer) => {
      const { r, vectorLength, topK } = layer.config;
      const [logitsA, logitsB, bank] = parts(layer, 'logitsA', 'logitsB', 'bank');
      const a = mixtures(logitsA, bank, table(layer, 'topA'), topK);
      const b = mixtures(logitsB, bank, table(layer, 'topB'), topK);
      const perRow = layer.K / vectorLength;
      const whole = (i: number, k: number) =>
        a.at(i * perRow + Math.floor(k / vectorLength), k % vectorLength);
      const update = Matrix.of(layer.N, layer.K, (n, k) => {
        let sum = 0;
        for (let i = 0; i < r; i++) {
          sum += b.at(Math.floor(n / vectorLength) * r + i, n % vectorLength) * whole(i, k);
        }
        return sum;
      });
      return { weight: layer.w.plus(update) };
    },
  },
  cases: {
    vblora: {
      settings: { r: 3, vectors: 6, vectorLength: 8, topK: 2, bankBound: 0.5 },
      startsElsewhere: 'both factors come from one drawn bank',
    },
  },
};
