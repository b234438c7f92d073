import { defineStart } from '../definition/definition.js';

/**
 * The places of SHiRA's entries: those of w with the smallest size, which pre-training uses least. Ties go to the earlier entry.
 * The entries are 0, and the base is w.
 */
export const pafi = defineStart({
  start: 'pafi',
  reference:
    'Liao et al., Parameter-Efficient Fine-Tuning without Introducing New Latency, 2023, arXiv:2305.16742',
  from: 'weight',
  defaults: {},
  adapters: ['shira'],
  factors: ({ w, N, K }, { r }) => {
    const values = w.readSync();
    const size = (at: number) => Math.abs(values[at] as number);
    const order = Uint32Array.from(values.keys()).sort((a, b) => size(a) - size(b) || a - b);
    const entries = order.slice(0, r * (N + K)).sort();
    const indices = new Int32Array(2 * entries.length);
    for (const [i, entry] of entries.entries()) {
      indices[i] = Math.floor(entry / K);
      indices[entries.length + i] = entry % K;
    }
    return { indexes: { indices } };
  },
});
