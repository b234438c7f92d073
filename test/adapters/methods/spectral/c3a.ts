import { type Formula, parts } from '../../../oracle/adapter-layer.js';
import { added } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const c3a: Formula = (layer) => {
  const { K, config } = layer;
  const [kernel] = parts(layer, 'kernel');
  const b = config.blockSize;
  return added(layer, (n, k) => {
    const block = Math.floor(n / b) * (K / b) + Math.floor(k / b);
    return kernel.at(block, ((k % b) - (n % b) + b) % b) / K;
  });
};

export const tests: MethodTests = {
  formulas: {
    c3a,
  },
  cases: {
    c3a: { settings: { blockSize: 8 } },
    'c3a/odd': { settings: { blockSize: 7 }, N: 21, K: 35 },
  },
};
