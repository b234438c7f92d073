import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import { blockDiagonal, cayleyOf, slab } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

/** The permutation matrix of a butterfly factor: even halves of blocks first, in runs of 2^i blocks. */
function butterfly(K: number, size: number, factor: number): Matrix {
  const run = size * 2 ** factor;
  const order: number[] = [];
  for (let start = 0; start < K; start += run) {
    for (const odd of [0, 1]) {
      for (let half = odd; half < (2 * run) / size; half += 2) {
        for (let i = 0; i < size / 2; i++) order.push(start + (half * size) / 2 + i);
      }
    }
  }
  return Matrix.of(K, K, (i, j) => (order[i] === j ? 1 : 0));
}

function boftOf(layer: OracleLayer): { weight: Matrix } {
  const { w, K, config } = layer;
  const [boftR, boftS] = parts(layer, 'boftR', 'boftS');
  const size = config.blockSize;
  let rotation = Matrix.identity(K);
  for (let factor = 0; factor < config.factors; factor++) {
    const blocks = Array.from({ length: K / size }, (_, d) => {
      const r = slab(boftR, (factor * K) / size + d, size);
      return cayleyOf(r.plus(r.transposed(), -1).map((v) => v / 2));
    });
    const b = blockDiagonal(blocks);
    const order = config.factors > 1 ? butterfly(K, size, factor) : Matrix.identity(K);
    rotation = order.times(b).times(order.transposed()).times(rotation);
  }
  return { weight: w.times(rotation.transposed()).scaleRows(boftS.data) };
}

export const tests: MethodTests = {
  formulas: {
    boft: boftOf,
  },
  cases: {
    boft: { settings: { blockSize: 4 } },
    'boft/butterfly': { settings: { blockSize: 4, factors: 3 } },
  },
};
