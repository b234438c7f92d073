import { type Formula, parts, scaling } from '../../../oracle/adapter-layer.js';
import { added, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const qalora: Formula = (layer) => {
  const { K, config } = layer;
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { r, groupSize, pool } = config;
  // What the mean of a group is multiplied by.
  const times = { groups: K / groupSize, mean: 1, size: groupSize }[pool as 'mean'];
  const scale = (scaling(layer) * times) / groupSize;
  return added(
    layer,
    (n, k) => scale * sum(r, (i) => b.at(n, i) * a.at(i, Math.floor(k / groupSize))),
  );
};

export const tests: MethodTests = {
  formulas: {
    qalora,
  },
  cases: {
    qalora: { settings: { r: 4, loraAlpha: 6, groupSize: 8 } },
    'qalora/mean': { settings: { r: 4, loraAlpha: 6, groupSize: 4, pool: 'mean' } },
    'qalora/size': { settings: { r: 4, loraAlpha: 6, groupSize: 4, pool: 'size' } },
  },
};
