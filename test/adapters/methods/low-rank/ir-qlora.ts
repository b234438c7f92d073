import { type Formula, parts, scaling } from '../../../oracle/adapter-layer.js';
import { added, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const irQlora: Formula = (layer) => {
  const { N, K, config } = layer;
  const [a, b, scaleA, scaleB] = parts(layer, 'loraA', 'loraB', 'scaleA', 'scaleB');
  const { r } = config;
  const first = (i: number, k: number): number =>
    a.at(i, k) + (Math.floor(k / (K / r)) === i ? (scaleA.at(0, 0) * r) / K : 0);
  const second = (n: number, i: number): number =>
    b.at(n, i) + (Math.floor(n / (N / r)) === i ? scaleB.at(0, 0) : 0);
  return added(layer, (n, k) => scaling(layer) * sum(r, (i) => second(n, i) * first(i, k)));
};

export const tests: MethodTests = {
  formulas: {
    'ir-qlora': irQlora,
  },
  cases: {
    'ir-qlora': { settings: { r: 4, loraAlpha: 6 } },
  },
};
