import { SparsePattern, sparseUpdate } from '../autograd/sparse-update.js';
import { orthonormalise } from '../linalg/rows.js';
import { solveRows } from '../linalg/solve.js';
import { denseRows } from '../ops/dense-rows.js';
import { matmulInputGrad } from '../ops/matmul.js';
import { defineAdapter } from './method.js';
import { randomEntries } from './sparse.js';

const countOf = (K: number, sparseRate: number): number => Math.trunc(sparseRate * K * K);

/** The columns of `w · v^-T`: their lengths, and the columns divided by them (one of zeros stays). */
function columnsOf(x: Float64Array, N: number, K: number) {
  const u = new Float32Array(N * K);
  const lambda = new Float32Array(K);
  for (let k = 0; k < K; k++) {
    let norm = 0;
    for (let n = 0; n < N; n++) norm += (x[n * K + k] as number) ** 2;
    norm = Math.sqrt(norm);
    lambda[k] = norm;
    for (let n = 0; n < N && norm > 1e-8; n++) u[n * K + k] = (x[n * K + k] as number) / norm;
  }
  return { u, lambda };
}

/**
 * The weight as a product of fixed full-rank factors around a trained core, a diagonal and some sparse
 * entries: `y = x·(u · (diag(lambda) + S) · vᵀ)ᵀ + bias` with v [K, K] shared by the layers of one kind, u [N, K]
 * of the layer and S [K, K]. The base weight itself takes no part; at the start S is zero and the product
 * is the base weight.
 *
 * The paper finds v by a joint decomposition of the layers' weights, and PEFT stores it; u follows from it
 * and the base weight (a linear system of K unknowns, solved on the host). A fresh adapter has a random
 * orthonormal v: pass `v`, `u` and `lambda` to `from` for the paper's. PEFT's folders hold one v for all layers
 * of a kind; those written here hold one a layer.
 */
export const frod = defineAdapter({
  method: 'frod',
  reference:
    'Wan et al., FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees for Fast Convergence, 2025, arXiv:2512.23485',
  defaults: { sparseRate: 0.02, dropout: 0 },
  trained: ['lambda', 'values'],
  frozen: ['v', 'u'],
  shapes: ({ N, K, config: { sparseRate } }) => ({
    lambda: [K],
    values: [countOf(K, sparseRate)],
    v: [K, K],
    u: [N, K],
  }),
  init: (make) => {
    const { N, K } = make;
    const w = denseRows(make.weight('frod.create'), 0, N);
    const rows = Float64Array.from(make.normal('v', 1).readSync());
    orthonormalise(rows, K, K);
    const v = make.values('v', (i) => rows[i] as number);
    // v^-T is v.
    const { u, lambda } = columnsOf(Float64Array.from(matmulInputGrad(w, v).readSync()), N, K);
    return {
      lambda: make.values('lambda', (i) => lambda[i] as number),
      values: make.zeros('values'),
      v,
      u: make.values('u', (i) => u[i] as number),
    };
  },
  drawIndexes: (make) => {
    const { K, config } = make;
    const places = randomEntries(K, K, countOf(K, config.sparseRate), make.seed()).sort();
    const table = new Int32Array(2 * places.length);
    places.forEach((place, i) => {
      table[i] = Math.floor(place / K);
      table[places.length + i] = place % K;
    });
    return { indices: table };
  },
  prepare: ({ K, device }, { indices }) => {
    const table = indices as Int32Array;
    const half = table.length / 2;
    const [rows, columns] = [table.slice(0, half), table.slice(half)];
    return new SparsePattern({ rows, columns, N: K, K, device });
  },
  check: ({ K, config: { sparseRate } }) =>
    sparseRate >= 0 && sparseRate <= 1 && countOf(K, sparseRate) > 0
      ? undefined
      : ['sparseRate', 'from 0 to 1, with an entry to train', String(sparseRate)],
  forward: (t, { x, bias, p, state, config: { dropout } }) => {
    const z = t.product(t.cast(t.dropout(x, dropout), 'f32'), p.v);
    const h = t.add(t.multiply(z, p.lambda), sparseUpdate(t, z, p.values, state));
    const y = t.matmul(h, p.u);
    return t.cast(bias === undefined ? y : t.add(y, bias), x.tensor.dtype);
  },
  peft: {
    type: 'FROD',
    tensors: {
      lambda: 'frod_lambda_l',
      values: 'frod_lambda_s_values',
      u: 'frod_U',
      v: 'frod_V',
    },
    sharedName: (name, module) => (name === 'v' ? `frod_V.${module.split('.').at(-1)}` : undefined),
    indexes: { indices: 'frod_s_indices' },
    indexShapes: ({ K, config: { sparseRate } }) => ({ indices: [2, countOf(K, sparseRate)] }),
    required: ['v'],
    read: ({ sparse_rate, frod_dropout }) => ({
      sparseRate: Number(sparse_rate ?? 0.02),
      dropout: Number(frod_dropout ?? 0),
    }),
    write: ({ sparseRate, dropout }) => ({ sparse_rate: sparseRate, frod_dropout: dropout }),
    regenerate: (_, make, _largest, { v }) => {
      if (v === undefined) return {};
      const { N, K } = make;
      const w = Float64Array.from(denseRows(make.weight('frod'), 0, N).readSync());
      const x = solveRows(Float64Array.from(v.readSync()), K, w, N);
      return { tensors: { u: columnsOf(x, N, K).u } };
    },
  },
});
