import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/** The first columns of H₁ H₂ …, of the reflections that take p to an upper triangle. */
function householderBasis(p: Matrix): Matrix {
  const { rows: N, cols: r } = p;
  let rest = p;
  let product = Matrix.identity(N);
  for (let k = 0; k < r; k++) {
    const x = Matrix.of(N, 1, (i) => (i < k ? 0 : rest.at(i, k)));
    const norm = Math.sqrt(x.data.reduce((sum, v) => sum + v * v, 0));
    const v = x.map((value, i) => (i === k ? value + Math.sign(value) * norm : value));
    const length = v.data.reduce((sum, value) => sum + value * value, 0);
    const reflect = Matrix.identity(N).plus(v.times(v.transposed()), -2 / length);
    rest = reflect.times(rest);
    product = product.times(reflect);
  }
  return Matrix.of(N, r, (i, j) => product.at(i, j));
}

/** What DEFT puts in; PaRa nothing. */
const putIn = ({ p, K, config }: OracleLayer): Matrix =>
  p.inject?.map((v) => v * config.scaling) ?? Matrix.zeros(config.r, K);

export const tests: MethodTests = {
  formulas: {
    deft: (layer) => {
      const [p] = parts(layer, 'p');
      const taken = p
        .map((v) => Math.max(v, 0))
        .transposed()
        .times(layer.w);
      return { weight: layer.w.plus(p.times(putIn(layer).plus(taken, -1))) };
    },
    'deft-qr': (layer) => {
      const [p] = parts(layer, 'p');
      const q = householderBasis(p);
      return {
        weight: layer.w.plus(q.times(putIn(layer).plus(q.transposed().times(layer.w), -1))),
      };
    },
  },
  cases: {
    deft: { settings: { r: 4, scaling: 1.5 }, step: 1 / 128 },
    'deft/para': {
      settings: { r: 4, para: true },
      step: 1 / 128,
      startsElsewhere: 'a subspace is taken out from the start',
    },
    'deft-qr/para': {
      settings: { r: 4, para: true },
      step: 1 / 128,
      startsElsewhere: 'a subspace is taken out from the start',
    },
    'deft-qr': { settings: { r: 4, scaling: 1.5 }, step: 1 / 128 },
  },
};
