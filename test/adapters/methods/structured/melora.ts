import { type Formula, parts, scaling } from '../../../oracle/adapter-layer.js';
import { added, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const melora: Formula = (layer) => {
  const { N, K, config } = layer;
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { r, minis } = config;
  const [width, height] = [K / minis, N / minis];
  return added(layer, (n, k) => {
    const g = Math.floor(n / height);
    if (g !== Math.floor(k / width)) return 0;
    return scaling(layer) * sum(r, (i) => b.at(n, i) * a.at(g * r + i, k % width));
  });
};

export const tests: MethodTests = {
  formulas: {
    melora,
  },
  cases: {
    melora: { settings: { r: 3, loraAlpha: 4, minis: 4 } },
  },
};
