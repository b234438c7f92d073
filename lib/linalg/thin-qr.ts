import { choleskyRows, solveLower } from './cholesky.js';
import { orthonormalise, rowDots } from './rows.js';

/** `aᵀ = qᵀ · r` with orthonormal rows of q, for rows a. */
export interface ThinQr {
  /** [p, n] orthonormal rows; one whose row of a is in the span of those before it is zero or any other direction. */
  readonly q: Float64Array;
  /** [p, p] upper-triangular, its diagonal not negative. */
  readonly r: Float64Array;
}

/**
 * The QR decomposition of a matrix whose columns are the rows of a, on the host in float64: Cholesky-QR twice, which is as
 * orthogonal as Householder's method for condition numbers up to 1e7 (Yamamoto et al., Roundoff error analysis of the CholeskyQR2
 * algorithm, 2015). Beyond that, and for dependent rows, it is Gram-Schmidt twice.
 * @param a [p, n] row by row
 */
export function thinQr(a: Float64Array, p: number, n: number): ThinQr {
  const once = choleskyQr(a, p, n);
  const twice = once === undefined ? undefined : choleskyQr(once.q, p, n);
  if (once !== undefined && twice !== undefined) {
    // a = l₁ · l₂ · q in rows, so r is the transpose of the product.
    const r = new Float64Array(p * p);
    for (let i = 0; i < p; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = 0;
        for (let k = j; k <= i; k++) {
          sum += (once.l[i * p + k] as number) * (twice.l[k * p + j] as number);
        }
        r[j * p + i] = sum;
      }
    }
    return { q: twice.q, r };
  }
  const q = a.slice();
  // Lengths of power two, so that the bound of Gram-Schmidt for a zero row does not depend on the size of a.
  for (let i = 0; i < p; i++) {
    const row = q.subarray(i * n, (i + 1) * n);
    const most = row.reduce((sum, v) => Math.max(sum, Math.abs(v)), 0);
    if (most > 0) for (let k = 0; k < n; k++) row[k] = (row[k] as number) / most;
  }
  orthonormalise(q, p, n);
  const r = rowDots(q, p, a, p, n);
  for (let i = 0; i < p; i++) r.fill(0, i * p, i * p + i);
  return { q, r };
}

/** One pass: a = l · q. Undefined if the rows are dependent to half the digits. */
function choleskyQr(a: Float64Array, p: number, n: number) {
  const gram = rowDots(a, p, a, p, n);
  const { l, failed } = choleskyRows(gram, p);
  if (failed !== undefined) return undefined;
  for (let i = 0; i < p; i++) {
    const [pivot, length] = [l[i * p + i] as number, Math.sqrt(gram[i * p + i] as number)];
    if (!(pivot > 1e-7 * length)) return undefined;
  }
  const q = a.slice();
  solveLower(l, p, q, n);
  return { l, q };
}
