import { SparsePattern, sparseUpdate } from '../../../autograd/sparse-update.js';
import { defineAdapter } from '../../definition/method.js';
import { randomEntries } from '../../parts/sparse.js';

const countOf = (N: number, K: number, r: number): number => r * (N + K);

/** The rows of all entries, then their columns, as PEFT stores them. */
function drawn(N: number, K: number, r: number, seed: number): Int32Array {
  const entries = randomEntries(N, K, countOf(N, K, r), seed).sort();
  const table = new Int32Array(2 * entries.length);
  entries.forEach((entry, i) => {
    table[i] = Math.floor(entry / K);
    table[entries.length + i] = entry % K;
  });
  return table;
}

/**
 * Sparse high-rank adaptation: trains as many entries of the weight as LoRA of rank r has values,
 * `ΔW = scatter(weight)`, at random positions. The positions are drawn from `placesSeed` if it is not negative,
 * otherwise from the adapter's seed. Other masks are given as a table of rows and columns.
 */
export const shira = defineAdapter({
  method: 'shira',
  reference: 'Bhardwaj et al., Sparse High Rank Adapters, 2024, arXiv:2406.13175',
  defaults: { r: 32, placesSeed: -1 },
  trained: ['weight'],
  shapes: ({ N, K, config: { r } }) => ({ weight: [countOf(N, K, r)] }),
  init: (make) => ({ weight: make.zeros('weight') }),
  drawIndexes: (make) => {
    const { N, K, config } = make;
    return {
      indices: drawn(N, K, config.r, config.placesSeed < 0 ? make.seed() : config.placesSeed),
    };
  },
  prepare: ({ N, K, device }, { indices }) => {
    const table = indices as Int32Array;
    const half = table.length / 2;
    const [rows, columns] = [table.slice(0, half), table.slice(half)];
    return new SparsePattern({ rows, columns, N, K, device });
  },
  check: ({ N, K, config: { r } }) =>
    countOf(N, K, r) <= N * K
      ? undefined
      : ['r', `at most ${Math.floor((N * K) / (N + K))}`, String(r)],
  forward: (t, { x, w, bias, p, state }) =>
    t.add(t.linear(x, w, bias), sparseUpdate(t, x, p.weight, state)),
  peft: {
    type: 'SHIRA',
    tensors: { weight: 'shira_weight' },
    indexes: { indices: 'shira_indices' },
    indexShapes: ({ N, K, config: { r } }) => ({ indices: [2, countOf(N, K, r)] }),
    read: ({ r, random_seed }) => ({ r: Number(r), placesSeed: Number(random_seed ?? -1) }),
    write: ({ r, placesSeed }) => ({
      r,
      mask_type: 'random',
      random_seed: placesSeed < 0 ? null : placesSeed,
    }),
    regenerate: ({ random_seed }, { N, K, config: { r } }) =>
      typeof random_seed === 'number' ? { indexes: { indices: drawn(N, K, r, random_seed) } } : {},
  },
});
