import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/** Π (I - 2 u uᵀ / |u|²) over the columns u, in their order. */
function reflections(u: Matrix): Matrix {
  let product = Matrix.identity(u.rows);
  for (let c = 0; c < u.cols; c++) {
    const column = Matrix.of(u.rows, 1, (i) => u.at(i, c));
    const norm = column.data.reduce((sum, v) => sum + v * v, 0);
    product = product.plus(product.times(column).times(column.transposed()), -2 / norm);
  }
  return product;
}

/** The same with the columns made orthogonal, one after the other. */
function reflectionsOfBasis(u: Matrix): Matrix {
  const basis: Float64Array[] = [];
  const dot = (a: Float64Array, b: Float64Array): number =>
    a.reduce((total, v, i) => total + v * (b[i] as number), 0);
  for (let c = 0; c < u.cols; c++) {
    let column = Float64Array.from({ length: u.rows }, (_, i) => u.at(i, c));
    for (const q of basis) {
      const along = dot(q, column);
      column = column.map((v, i) => v - along * (q[i] as number));
    }
    const norm = Math.sqrt(dot(column, column));
    basis.push(column.map((v) => v / norm));
  }
  return reflections(Matrix.of(u.rows, u.cols, (i, c) => basis[c]?.[i] as number));
}

const hraOf = (layer: OracleLayer): { weight: Matrix } => {
  const [u] = parts(layer, 'hraU');
  return {
    weight: layer.w.times(layer.config.gramSchmidt ? reflectionsOfBasis(u) : reflections(u)),
  };
};

export const tests: MethodTests = {
  formulas: {
    hra: hraOf,
  },
  cases: {
    hra: { settings: { r: 6 } },
    'hra/gram-schmidt': {
      settings: { r: 5, gramSchmidt: true },
      startsElsewhere: 'a chain of orthogonal reflections is never the identity',
    },
  },
};
