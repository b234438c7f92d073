/** Formulas in float64 of the methods that are built of blocks, reflections and rotations. */
import { type Formula, Matrix, parts } from './adapter-layer.js';

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

export const structuredOracle: Readonly<Record<string, Formula>> = {
  hra: (layer) => ({ weight: layer.w.times(reflections(parts(layer, 'hraU')[0])) }),
};
