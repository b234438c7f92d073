import { sparseUpdate } from '../../../autograd/sparse-update.js';
import { scope } from '../../../core/scope.js';
import { denseRows } from '../../../ops/dense-rows.js';
import type { AdapterMaker } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import { patternOfEntries } from '../../parts/sparse.js';

/** Rounded like Python's `int(size * (1 - sparsity))`. */
const countOf = (N: number, K: number, sparsity: number): number =>
  Math.trunc(N * K * (1 - sparsity));

/** Positions of the largest (or smallest) magnitudes of the base weight, in that order. */
function choose(make: AdapterMaker<{ sparsity: number; selectTop: boolean }>): Int32Array {
  const { N, K, config } = make;
  const w = make.weight('supertuning.create');
  const size = scope(() => denseRows(w, 0, N).readSync().map(Math.abs));
  const sign = config.selectTop ? -1 : 1;
  const order = Int32Array.from({ length: N * K }, (_, i) => i);
  order.sort((i, j) => sign * ((size[i] as number) - (size[j] as number)) || i - j);
  return order.slice(0, countOf(N, K, config.sparsity));
}

/**
 * Trains the entries of the weight with the largest magnitudes, `ΔW = scatter(values)`. They are
 * selected once from the base weight, when the adapter is made.
 */
export const supertuning = defineAdapter({
  method: 'supertuning',
  reference:
    'Super-Tuning: sparse fine-tuning of the entries of largest magnitude, 2026, arXiv:2607.09287',
  defaults: { sparsity: 0.99, selectTop: true },
  trained: ['values'],
  shapes: ({ N, K, config: { sparsity } }) => ({ values: [countOf(N, K, sparsity)] }),
  init: (make) => ({ values: make.zeros('values') }),
  drawIndexes: (make) => ({ entries: choose(make) }),
  prepare: (make, { entries }) => patternOfEntries(make, entries as Int32Array),
  check: ({ N, K, config: { sparsity } }) =>
    sparsity >= 0 && sparsity <= 1 && countOf(N, K, sparsity) > 0
      ? undefined
      : ['sparsity', 'from 0 to 1 and such that an entry is trained', String(sparsity)],
  forward: (t, { x, w, bias, p, state }) =>
    t.add(t.linear(x, w, bias), sparseUpdate(t, x, p.values, state)),
  peft: {
    type: 'SUPERTUNING',
    when: ({ r }) => r === undefined || r === null,
    tensors: { values: 'supertuning_values' },
    indexes: { entries: 'supertuning_indices' },
    regenerate: (_, make) => ({ indexes: { entries: choose(make) } }),
    read: ({ sparsity, select_top }) => ({
      sparsity: Number(sparsity),
      selectTop: select_top !== false,
    }),
    write: ({ sparsity, selectTop }) => ({ sparsity, select_top: selectTop, r: null }),
  },
});
