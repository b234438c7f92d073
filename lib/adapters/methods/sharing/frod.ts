import { SparsePattern, sparseUpdate } from '../../../autograd/sparse-update.js';
import type { Tensor } from '../../../core/tensor.js';
import { orthonormalise } from '../../../linalg/rows.js';
import { solveRows } from '../../../linalg/solve.js';
import { denseRows } from '../../../ops/dense-rows.js';
import { matmulInputGrad } from '../../../ops/matmul.js';
import type { AdapterMaker } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import { randomEntries } from '../../parts/sparse.js';

/** Multiplied in PEFT's order, so that rounding near an integer gives the same result. */
const countOf = (K: number, sparseRate: number): number => Math.trunc(K * K * sparseRate);

/**
 * In PEFT, layers of one role share v and the positions: the role is the last two parts of their
 * names, or one after a number.
 */
function kindOf(module: string): string {
  const parts = module.split('.');
  const [before = '', last = module] = parts.length > 1 ? parts.slice(-2) : [];
  if (parts.length === 1 || /^\d+$/.test(before)) return last;
  const kind = `${before}_${last}`;
  return kind === 'output_dense' && parts.at(-3) === 'attention' ? 'attention_output' : kind;
}

/** Sorted positions of the sparse entries: their rows, then their columns. */
function drawPlaces(K: number, count: number, seed: number): Int32Array {
  const places = randomEntries(K, K, count, seed).sort();
  const table = new Int32Array(2 * places.length);
  places.forEach((place, i) => {
    table[i] = Math.floor(place / K);
    table[places.length + i] = place % K;
  });
  return table;
}

/** The columns of `w · v^-T`: their lengths, and the columns divided by them (zero columns stay). */
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

type Make = AdapterMaker<{ sparseRate: number; dropout: number }, 'v' | 'u' | 'lambda' | 'values'>;

/** Random and orthonormal, so that it equals its own inverse transpose. */
function drawnV(make: Make): Tensor {
  const { K } = make;
  const rows = Float64Array.from(make.normal('v', 1).readSync());
  orthonormalise(rows, K, K);
  return make.values('v', (i) => rows[i] as number);
}

/** u and lambda of a layer, for an orthonormal v. */
function turned(make: Make, v: Tensor) {
  const { N, K } = make;
  const w = denseRows(make.weight('frod.create'), 0, N);
  return columnsOf(Float64Array.from(matmulInputGrad(w, v).readSync()), N, K);
}

/**
 * The weight as a product of fixed full-rank factors around a trained core, a diagonal and some sparse entries:
 * `y = x·(u · (diag(lambda) + S) · vᵀ)ᵀ + bias`, with v [K, K] shared by the layers of one kind, and u [N, K] and
 * S [K, K] of the layer. The base weight itself is not used; initially S is zero and the product is the base
 * weight.
 *
 * The paper finds v by a joint decomposition of the layers' weights, and PEFT stores it; u follows from it and the base
 * weight (a linear system of K unknowns, solved on the host). A new adapter has a random orthonormal v,
 * {@link AdapterMethod.createAll} one for all layers of a width. For the paper's, pass `v`, `u` and `lambda` to `from`. A
 * folder has one v and one table of positions for all layers of a kind (the last two parts of their names).
 *
 * PEFT computes v and u from the base weights when it loads, and then takes v from the folder: it computes the same only if
 * v comes from a folder of its own. Its later versions (main, after 0.20) add the product to the base weight.
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
    const v = drawnV(make);
    const { u, lambda } = turned(make, v);
    return {
      lambda: make.values('lambda', (i) => lambda[i] as number),
      values: make.zeros('values'),
      v,
      u: make.values('u', (i) => u[i] as number),
    };
  },
  drawIndexes: (make) => {
    const { K, config } = make;
    return { indices: drawPlaces(K, countOf(K, config.sparseRate), make.seed()) };
  },
  // Layers of one kind have one width, so layers of one width may share everything that a kind shares.
  drawTogether: (makes) => {
    const known = new Map<number, { readonly v: Float32Array; readonly indices: Int32Array }>();
    return makes.map((make) => {
      const { K, config } = make;
      let common = known.get(K);
      if (common === undefined) {
        const v = drawnV(make).readSync();
        common = { v, indices: drawPlaces(K, countOf(K, config.sparseRate), make.seed()) };
        known.set(K, common);
      }
      const { v, indices } = common;
      const { u, lambda } = turned(
        make,
        make.values('v', (i) => v[i] as number),
      );
      return { tensors: { lambda, v, u }, indexes: { indices } };
    });
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
      : ['sparseRate', 'from 0 to 1 and such that an entry is trained', String(sparseRate)],
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
    },
    sharedName: (name, module) => (name === 'v' ? `frod_V.${kindOf(module)}` : undefined),
    // Folders of earlier versions of this library have one v per layer.
    unpack: (name, _, stored) => (name === 'v' ? stored('frod_V') : undefined),
    kind: kindOf,
    constants: ({ K }) => ({ frod_s_size: [K, K] }),
    caveat: () =>
      'PEFT derives frod_U from a frod_V of its own decomposition of the base weights: it computes what this adapter ' +
      'computes only if v comes from a folder that PEFT wrote for this model',
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
