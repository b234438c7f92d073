import { type Formula, parts } from '../../../oracle/adapter-layer.js';
import { added, kron } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

const krona: Formula = (layer) => {
  const entry = kron(...parts(layer, 'kronA', 'kronB'));
  return added(layer, (n, k) => layer.config.scale * entry(n, k));
};

export const tests: MethodTests = {
  formulas: {
    krona,
  },
  cases: {
    krona: { settings: { scale: 1.5 } },
    'krona/chosen': { settings: { leftN: 2, leftK: 8 } },
  },
};
