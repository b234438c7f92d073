import { subtractProduct, transposed } from './rows.js';

/**
 * The rows X [m, n] with `v · xᵀ = wᵀ` for each row, by elimination with row pivots (Golub and Van Loan, Matrix Computations,
 * section 3.4). For a singular v the result is not finite.
 * @param v [n, n] row by row; it is overwritten
 * @param w [m, n]
 */
export function solveRows(v: Float64Array, n: number, w: Float64Array, m: number): Float64Array {
  const order = factorise(v, n);
  // One row per unknown, so that each step treats all right-hand sides.
  const from = transposed(w, m, n);
  const x = new Float64Array(n * m);
  order.forEach((row, i) => {
    x.set(from.subarray(row * m, (row + 1) * m), i * m);
  });
  for (let i = 0; i < n; i++) reduce(x, m, i, v, i * n, 0, i);
  for (let i = n - 1; i >= 0; i--) {
    reduce(x, m, i, v, i * n, i + 1, n);
    const pivot = v[i * n + i] as number;
    for (let k = i * m; k < (i + 1) * m; k++) x[k] = (x[k] as number) / pivot;
  }
  return transposed(x, n, m);
}

/** Subtracts the rows from `begin` to `end` from row i of x, each times its factor at `at`. */
function reduce(
  x: Float64Array,
  m: number,
  i: number,
  v: Float64Array,
  at: number,
  begin: number,
  end: number,
): void {
  const row = x.subarray(i * m, (i + 1) * m);
  subtractProduct(row, 1, v.subarray(at + begin, at + end), x.subarray(begin * m), end - begin, m);
}

/**
 * Factorises into L (below the diagonal, with an implied unit diagonal) and U. Returns which row
 * came to each place.
 */
function factorise(v: Float64Array, n: number): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let k = 0; k < n; k++) {
    let pivot = k;
    for (let i = k + 1; i < n; i++) {
      if (Math.abs(v[i * n + k] as number) > Math.abs(v[pivot * n + k] as number)) pivot = i;
    }
    if (pivot !== k) {
      const row = v.slice(k * n, (k + 1) * n);
      v.copyWithin(k * n, pivot * n, (pivot + 1) * n);
      v.set(row, pivot * n);
      [order[k], order[pivot]] = [order[pivot] as number, order[k] as number];
    }
    const top = v.subarray(k * n, (k + 1) * n);
    for (let i = k + 1; i < n; i++) {
      const row = v.subarray(i * n, (i + 1) * n);
      const factor = (row[k] as number) / (top[k] as number);
      row[k] = factor;
      for (let j = k + 1; j < n; j++) row[j] = (row[j] as number) - factor * (top[j] as number);
    }
  }
  return order;
}
