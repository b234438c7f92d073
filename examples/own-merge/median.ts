/** A way to merge of one's own: `lowrank merge A B C OUT --by examples/own-merge/median.ts --set strength=0.5`. */

import { defineMerge } from 'lowrank';

export default defineMerge({
  merge: 'median',
  reference: 'nobody: an example of a way to merge of one’s own',
  defaults: { strength: 1 },
  over: 'update',
  check: ({ strength }) => (strength > 0 ? undefined : ['strength', 'above 0', String(strength)]),
  entry: (values, weights, { strength }) => {
    const sorted = values.map((value, i) => value * (weights[i] ?? 1)).sort();
    const half = (sorted.length - 1) / 2;
    const [low = 0, high = 0] = [sorted[Math.floor(half)], sorted[Math.ceil(half)]];
    return (strength * (low + high)) / 2;
  },
});
