import { type Formula, parts, scaling } from '../../../oracle/adapter-layer.js';
import { added, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const bdlora: Formula = (layer) => {
  const { N, K, config } = layer;
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { r, blocks, side } = config;
  return added(layer, (n, k) => {
    const total = sum(r, (i) => {
      if (side === 'none') return b.at(n, i) * a.at(i, k);
      const g = Math.floor(i / (r / blocks));
      if (side === 'a') {
        return Math.floor(k / (K / blocks)) === g ? b.at(n, i) * a.at(i, k % (K / blocks)) : 0;
      }
      return Math.floor(n / (N / blocks)) === g ? b.at(n, i % (r / blocks)) * a.at(i, k) : 0;
    });
    return scaling(layer) * total;
  });
};

export const tests: MethodTests = {
  formulas: {
    bdlora,
  },
  cases: {
    bdlora: { settings: { r: 4, loraAlpha: 6, blocks: 2, side: 'a' } },
    'bdlora/b': { settings: { r: 4, loraAlpha: 6, blocks: 4, side: 'b' } },
    'bdlora/none': { settings: { r: 4, loraAlpha: 6, blocks: 3, side: 'none' } },
  },
};
