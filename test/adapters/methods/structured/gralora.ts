import { type Formula, parts } from '../../../oracle/adapter-layer.js';
import { added, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const gralora: Formula = (layer) => {
  const { N, K, config, p } = layer;
  const [a, b] = parts(layer, 'graA', 'graB');
  const { r, k: cut, hybridR, loraAlpha } = config;
  const [width, height, part] = [K / cut, N / cut, r / cut];
  const { generalA, generalB } = p;
  return added(layer, (n, k) => {
    const j = Math.floor(n / height);
    const i = Math.floor(k / width);
    const fine = sum(part, (s) => a.at(k, j * part + s) * b.at(j * r + i * part + s, n % height));
    const general = sum(hybridR, (s) => (generalB?.at(n, s) ?? 0) * (generalA?.at(s, k) ?? 0));
    return (loraAlpha / (r + hybridR)) * (fine + general);
  });
};

export const tests: MethodTests = {
  formulas: {
    gralora,
  },
  cases: {
    gralora: { settings: { r: 8, loraAlpha: 12, k: 4 } },
    'gralora/hybrid': { settings: { r: 4, loraAlpha: 12, k: 2, hybridR: 3 } },
  },
};
