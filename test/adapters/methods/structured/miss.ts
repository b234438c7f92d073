import { type Formula, parts } from '../../../oracle/adapter-layer.js';
import { added, sum } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const miss: Formula = (layer) => {
  const { N, w, config } = layer;
  const [d] = parts(layer, 'missD');
  const { r, form, miniR } = config;
  if (form === 'bat') {
    return added(layer, (n, k) => {
      const first = Math.floor(n / r) * r;
      const run = Math.floor(k / r) * r;
      const through = sum(r, (i) => w.at(n, run + i) * d.at(first + i, k % r));
      return through + d.at(n, k % r);
    });
  }
  const width = form === 'mini' ? miniR : N;
  return added(layer, (n, k) => d.at(k % r, n % width));
};

export const tests: MethodTests = {
  formulas: {
    miss,
  },
  cases: {
    miss: { settings: { r: 8 } },
    'miss/ragged': { settings: { r: 7 } },
    'miss/mini': { settings: { r: 8, form: 'mini', miniR: 6 } },
    'miss/bat': { settings: { r: 8, form: 'bat' } },
  },
};
