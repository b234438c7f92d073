/** Maps of features and products of blocks, in float64. */
import {
  abs,
  at,
  type Bounded,
  type Matrix,
  matrix,
  timesTransposed,
  transpose,
} from './linear.js';

/** y[m, j] = alpha · Σ x[m, t] over lists[j] + beta · c[m, j] */
export function mapFeatures64(
  x: Matrix,
  lists: readonly ArrayLike<number>[],
  c?: Matrix,
  alpha = 1,
  beta = 1,
): Bounded {
  const value = matrix(x.rows, lists.length);
  const p = matrix(x.rows, lists.length);
  for (let m = 0; m < x.rows; m++) {
    for (const [j, list] of lists.entries()) {
      let sum = 0;
      let size = 0;
      for (const t of Array.from(list)) {
        sum += at(x, m, t);
        size += Math.abs(at(x, m, t));
      }
      const summand = c === undefined ? 0 : beta * at(c, m, j);
      value.data[m * lists.length + j] = alpha * sum + summand;
      p.data[m * lists.length + j] = Math.abs(alpha) * size + Math.abs(summand);
    }
  }
  return { value, p };
}

/** Rows [rows · G, cols] of which block g has every G-th. */
function everyBlock(a: Matrix, G: number, g: number): Matrix {
  const rows = a.rows / G;
  const out = matrix(rows, a.cols);
  for (let m = 0; m < rows; m++) {
    for (let k = 0; k < a.cols; k++) out.data[m * a.cols + k] = at(a, m * G + g, k);
  }
  return out;
}

const rowsOf = (w: Matrix, first: number, count: number): Matrix =>
  matrix(count, w.cols, w.data.slice(first * w.cols, (first + count) * w.cols));

/** product(g) of each block, its rows G apart in the result. */
function interleaved(G: number, rows: number, cols: number, product: (g: number) => Matrix) {
  const out = matrix(rows * G, cols);
  for (let g = 0; g < G; g++) {
    const part = product(g);
    for (let m = 0; m < rows; m++) {
      for (let n = 0; n < cols; n++) out.data[(m * G + g) * cols + n] = at(part, m, n);
    }
  }
  return out;
}

/** y[m, g, :] = x[m, g, :] · w[g]ᵀ; x [M · G, K], w [G · N, K] */
export function blockMatmul64(x: Matrix, w: Matrix, G: number): Bounded {
  const N = w.rows / G;
  const of = (left: Matrix, right: Matrix) =>
    interleaved(G, x.rows / G, N, (g) =>
      timesTransposed(everyBlock(left, G, g), rowsOf(right, g * N, N)),
    );
  return { value: of(x, w), p: of(abs(x), abs(w)) };
}

/** dx[m, g, :] = dy[m, g, :] · w[g] */
export function blockMatmulInputGrad64(dy: Matrix, w: Matrix, G: number): Bounded {
  const N = w.rows / G;
  const of = (left: Matrix, right: Matrix) =>
    interleaved(G, dy.rows / G, w.cols, (g) =>
      timesTransposed(everyBlock(left, G, g), transpose(rowsOf(right, g * N, N))),
    );
  return { value: of(dy, w), p: of(abs(dy), abs(w)) };
}

/** dw[g] = Σₘ dy[m, g, :]ᵀ · x[m, g, :], [G · N, K] */
export function blockWeightGrad64(dy: Matrix, x: Matrix, G: number): Bounded {
  const of = (left: Matrix, right: Matrix): Matrix => {
    const out = matrix(G * dy.cols, x.cols);
    for (let g = 0; g < G; g++) {
      const part = timesTransposed(
        transpose(everyBlock(left, G, g)),
        transpose(everyBlock(right, G, g)),
      );
      out.data.set(part.data, g * dy.cols * x.cols);
    }
    return out;
  };
  return { value: of(dy, x), p: of(abs(dy), abs(x)) };
}
