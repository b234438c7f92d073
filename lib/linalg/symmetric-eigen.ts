import { fail } from '../core/errors.js';
import { diagonalise, tridiagonalise } from './tridiagonal.js';

/** Result of {@link symmetricEigen}. */
export interface SymmetricEigen {
  /** [n], descending. */
  readonly values: Float64Array;
  /** [n, n] row by row: row i is the unit vector of value i. */
  readonly vectors: Float64Array;
}

/** Up to this size Jacobi's rotations are used; their work grows faster. */
const MAX_JACOBI = 64;

/** Maximum sweeps over all pairs. Convergence is quadratic: eight are enough for n of a thousand. */
const MAX_SWEEPS = 60;

/**
 * Eigenvalues and eigenvectors of a symmetric matrix, on the host in float64: `a = Σᵢ values[i] · vectors[i]ᵀ · vectors[i]`. Up to
 * 64 rows, the size of factors of rank r, it uses Jacobi's cyclic rotations, which also give small values as exactly as float64
 * allows (Golub and Van Loan, Matrix Computations, section 8.5). Larger matrices use tridiagonalisation and implicit QR steps
 * (section 8.3), which are exact relative to the largest value: some seconds for a thousand rows.
 * @param a [n, n] row by row; only the upper triangle is read
 * @throws ERR_SHAPE if there are not n · n values · ERR_VALUE if a value is not finite
 * @example
 * const { values, vectors } = symmetricEigen(Float64Array.of(2, 1, 1, 2), 2); // 3 and 1
 */
export function symmetricEigen(a: Float64Array, n: number): SymmetricEigen {
  const op = 'symmetricEigen';
  if (a.length !== n * n) fail('ERR_SHAPE', op, 'a', `of ${n * n} values`, String(a.length));
  const m = a.slice();
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) m[i * n + j] = m[j * n + i] as number;
  }
  if (!m.every(Number.isFinite)) fail('ERR_VALUE', op, 'a', 'of finite values', 'NaN or infinity');
  const [d, v] = n > MAX_JACOBI ? byReduction(m, n) : byRotations(m, n);
  const order = Array.from({ length: n }, (_, i) => i).sort(
    (i, j) => (d[j] as number) - (d[i] as number) || i - j,
  );
  const values = Float64Array.from(order, (i) => d[i] as number);
  const vectors = new Float64Array(n * n);
  order.forEach((from, to) => {
    vectors.set(v.subarray(from * n, (from + 1) * n), to * n);
  });
  return { values, vectors };
}

/** Values and vectors, in any order. */
type Pairs = readonly [Float64Array, Float64Array];

function byReduction(m: Float64Array, n: number): Pairs {
  // A power of two near the largest magnitude, so that no square overflows or vanishes.
  let most = 0;
  for (const value of m) most = Math.max(most, Math.abs(value));
  const scale = most === 0 ? 1 : 2 ** Math.floor(Math.log2(most));
  for (let i = 0; i < m.length; i++) m[i] = (m[i] as number) / scale;
  const form = tridiagonalise(m, n);
  diagonalise(form, n);
  return [form.diagonal.map((value) => value * scale), form.q];
}

function byRotations(m: Float64Array, n: number): Pairs {
  const v = new Float64Array(n * n);
  for (let i = 0; i < n; i++) v[i * n + i] = 1;
  for (let sweep = 0; sweep < MAX_SWEEPS && rotateAll(m, v, n); sweep++);
  return [Float64Array.from({ length: n }, (_, i) => m[i * n + i] as number), v];
}

/** One sweep. Returns false if no entry is left that float64 can tell from zero. */
function rotateAll(m: Float64Array, v: Float64Array, n: number): boolean {
  let rotated = false;
  for (let p = 0; p < n; p++) {
    for (let q = p + 1; q < n; q++) {
      const off = m[p * n + q] as number;
      const app = m[p * n + p] as number;
      const aqq = m[q * n + q] as number;
      if (Math.abs(off) <= 2 ** -53 * Math.max(Math.sqrt(Math.abs(app * aqq)), 2 ** -500)) continue;
      rotated = true;
      // The smaller of the two angles that zero the entry (p, q).
      const theta = (aqq - app) / (2 * off);
      const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
      const c = 1 / Math.hypot(t, 1);
      const s = t * c;
      for (let k = 0; k < n; k++) turn(m, k * n + p, k * n + q, c, s);
      for (let k = 0; k < n; k++) turn(m, p * n + k, q * n + k, c, s);
      for (let k = 0; k < n; k++) turn(v, p * n + k, q * n + k, c, s);
      m[p * n + q] = 0;
      m[q * n + p] = 0;
    }
  }
  return rotated;
}

function turn(m: Float64Array, i: number, j: number, c: number, s: number): void {
  const a = m[i] as number;
  const b = m[j] as number;
  m[i] = c * a - s * b;
  m[j] = s * a + c * b;
}
