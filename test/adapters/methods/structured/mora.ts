import { type Formula, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

const mora: Formula = (layer) => {
  const { K, w, config } = layer;
  const [matrix] = parts(layer, 'matrix');
  const side = matrix.rows;
  const blocks = Math.ceil(K / side);
  if (config.kind === 'sharing') {
    // x, and its beginning behind it up to whole blocks, of which the sum goes through the matrix.
    const weight = w.map((v) => v);
    for (let n = 0; n < w.rows; n++) {
      for (let at = 0; at < blocks * side; at++) {
        const k = at < K ? at : at - K;
        weight.data[n * K + k] = weight.at(n, k) + matrix.at(n % side, at % side);
      }
    }
    return { weight };
  }
  const half = side / 2;
  const weight = w.map((v) => v);
  for (let n = 0; n < w.rows; n++) {
    const out = n % (blocks * side);
    const b = Math.floor(out / side);
    for (let l = 0; l < side; l++) {
      // What feature l of the block becomes: itself by the cosine, its partner by the sine.
      const angle = b * 10000 ** ((-2 * (l % half)) / side);
      const partner = l < half ? l + half : l - half;
      const own = matrix.at(out % side, l) * Math.cos(angle);
      const other = matrix.at(out % side, partner) * Math.sin(angle) * (l < half ? 1 : -1);
      const k = (b * side + l) % K;
      weight.data[n * K + k] = weight.at(n, k) + own + other;
    }
  }
  return { weight };
};

export const tests: MethodTests = {
  formulas: {
    mora,
  },
  cases: {
    mora: { settings: { r: 2 } },
    'mora/ragged': { settings: { r: 4 }, N: 36 },
    'mora/sharing': { settings: { r: 3, kind: 'sharing' } },
    'mora/sharing wide': { settings: { r: 20, kind: 'sharing' } },
  },
};
