import { Tensor } from '../../../core/tensor.js';
import { leadingTriplets } from '../../../linalg/tensors/triplets.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import type { AdapterMaker } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';

interface Settings {
  readonly r: number;
  readonly subspaces: number;
  readonly subspaceRank: number;
  readonly withBias: boolean;
}

/** Steps of the clustering. */
const STEPS = 10;

/**
 * Clusters rows [N, r] by k-means, starting from centres that are as far apart as possible: returns each
 * row's cluster. A cluster that loses its rows keeps its centre.
 */
function clusters(rows: Float64Array, N: number, r: number, count: number): Int32Array {
  const distance = (a: Float64Array, i: number, b: Float64Array, j: number): number => {
    let sum = 0;
    for (let k = 0; k < r; k++) sum += ((a[i * r + k] as number) - (b[j * r + k] as number)) ** 2;
    return sum;
  };
  const centres = new Float64Array(count * r);
  centres.set(rows.subarray(0, r));
  for (let c = 1; c < count; c++) {
    let far = 0;
    let most = -1;
    for (let n = 0; n < N; n++) {
      let near = Number.POSITIVE_INFINITY;
      for (let j = 0; j < c; j++) near = Math.min(near, distance(rows, n, centres, j));
      if (near > most) [far, most] = [n, near];
    }
    centres.set(rows.subarray(far * r, (far + 1) * r), c * r);
  }
  const member = new Int32Array(N);
  for (let step = 0; step < STEPS; step++) {
    for (let n = 0; n < N; n++) {
      let best = 0;
      for (let c = 1; c < count; c++) {
        if (distance(rows, n, centres, c) < distance(rows, n, centres, best)) best = c;
      }
      member[n] = best;
    }
    const sizes = new Int32Array(count);
    for (const c of member) sizes[c] = (sizes[c] as number) + 1;
    const sums = new Float64Array(count * r);
    member.forEach((c, n) => {
      for (let k = 0; k < r; k++)
        sums[c * r + k] = (sums[c * r + k] as number) + (rows[n * r + k] as number);
    });
    sizes.forEach((size, c) => {
      for (let k = 0; k < r && size > 0; k++)
        centres[c * r + k] = (sums[c * r + k] as number) / size;
    });
  }
  return member;
}

/** The singular vectors of the base weight, and clusters of its outputs by their vectors. */
function segment(make: AdapterMaker<Settings>) {
  const { N, config } = make;
  const { r, subspaces } = config;
  const { right, scaledLeft } = leadingTriplets(make.weight('adamss.create'), r, 0);
  // Left singular vectors normalised to length 1, as columns.
  const left = new Float64Array(N * r);
  for (let k = 0; k < r; k++) {
    const vector = scaledLeft.subarray(k * N, (k + 1) * N);
    const norm = Math.sqrt(vector.reduce((sum, v) => sum + v * v, 0)) || 1;
    vector.forEach((v, n) => {
      left[n * r + k] = v / norm;
    });
  }
  return { right, left, member: clusters(left, N, r, subspaces) };
}

/** Rows that span most of a cluster's left singular vectors: [subspaceRank, r]. */
function span(
  make: AdapterMaker<Settings>,
  left: Float64Array,
  member: Int32Array,
  cluster: number,
): Float64Array {
  const { config } = make;
  const { r, subspaceRank } = config;
  const own = [...member.keys()].filter((n) => member[n] === cluster);
  const rank = Math.min(own.length, subspaceRank);
  const out = new Float64Array(subspaceRank * r);
  if (rank === 0) return out;
  const rows = Float32Array.from(own.flatMap((n) => [...left.subarray(n * r, (n + 1) * r)]));
  const some = Tensor.from(rows, [own.length, r], { device: make.device });
  out.set(leadingTriplets(some, Math.min(rank, r), 0).right.subarray(0, rank * r));
  some.dispose();
  return out;
}

/**
 * Several small subspaces instead of one: the outputs are clustered by their left singular vectors, and each
 * cluster has its own factors within the leading right singular vectors of the base weight: `ΔW` of the outputs of
 * cluster i is `b_i · a_i · basis`, with basis [r, K] frozen, a_i [subspaceRank, r] and b_i [outputs,
 * subspaceRank]. `a` holds the clusters' rows one after another, `b` the rows of the outputs in their original
 * order. The table `subspace` gives the cluster of each output.
 *
 * With `withBias` the basis has a column for the bias too (`basisBias`), as in PEFT. PEFT's folders do
 * not store the clusters: `from` makes an adapter from one with the table of the training run.
 */
export const adamss = defineAdapter({
  method: 'adamss',
  reference:
    'Zheng et al., AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning, 2025, NeurIPS 2025',
  defaults: { r: 100, subspaces: 5, subspaceRank: 1, withBias: false },
  trained: ['a', 'b'],
  frozen: ['basis', 'basisBias'],
  shapes: ({ N, K, config: { r, subspaces, subspaceRank, withBias } }) => ({
    a: [subspaces * subspaceRank, r],
    b: [N, subspaceRank],
    basis: [r, K],
    ...(withBias ? { basisBias: [r] } : {}),
  }),
  init: (make) => {
    const { subspaces, subspaceRank, r } = make.config;
    const { right, left, member } = segment(make);
    const spans = Array.from({ length: subspaces }, (_, c) => span(make, left, member, c));
    const perSpan = subspaceRank * r;
    return {
      a: make.values('a', (i) => spans[Math.floor(i / perSpan)]?.[i % perSpan] as number),
      b: make.zeros('b'),
      basis: make.values('basis', (i) => right[i] as number),
      ...(make.config.withBias ? { basisBias: make.zeros('basisBias') } : {}),
    };
  },
  drawIndexes: (make) => ({ subspace: segment(make).member }),
  prepare: ({ N, config: { subspaces, subspaceRank: q }, device }, { subspace }) => {
    const table = subspace as Int32Array;
    const index = Int32Array.from(
      { length: N * q },
      (_, i) => (table[Math.floor(i / q)] as number) * q + (i % q),
    );
    return {
      spread: FeatureMap.gather(index, subspaces * q, { device }),
      sum: FeatureMap.groupSum(N * q, N, { device }),
    };
  },
  check: ({ N, K, config: { r, subspaces, subspaceRank } }) => {
    if (!(r > 0 && r <= Math.min(N, K))) return ['r', `from 1 to ${Math.min(N, K)}`, String(r)];
    if (!(subspaces > 0 && subspaces <= N))
      return ['subspaces', `from 1 to ${N}`, String(subspaces)];
    if (subspaceRank > 0 && subspaceRank <= r) return undefined;
    return ['subspaceRank', `from 1 to ${r}`, String(subspaceRank)];
  },
  forward: (t, { x, w, bias, p, state, N, config: { subspaceRank: q, withBias } }) => {
    const seen = t.shrink(x, p.basis);
    const moved = t.matmul(withBias ? t.add(seen, p.basisBias) : seen, p.a);
    const each = t.multiply(t.features(moved, state.spread), t.reshape(p.b, [N * q]));
    return t.add(t.linear(x, w, bias), q === 1 ? each : t.features(each, state.sum));
  },
});
