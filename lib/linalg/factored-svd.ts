import { orthonormalise, rowDots, transposed } from './rows.js';
import { lengthOf, smallSvd } from './small-svd.js';

/** Rows as `coefficients · basis`. */
interface Basis {
  /** [q, n] orthonormal rows. */
  readonly basis: Float64Array;
  readonly q: number;
  /** [p, q] */
  readonly coefficients: Float64Array;
}

/** An orthonormal basis of rows [p, n], with one row for each that is not in the span of those before it. */
export function rowBasis(rows: Float64Array, p: number, n: number): Basis {
  const units = rows.slice();
  const norms = Float64Array.from({ length: p }, (_, i) => lengthOf(rows, i * n, n));
  for (let i = 0; i < p; i++) {
    const norm = norms[i] as number;
    for (let k = i * n; k < (i + 1) * n; k++) units[k] = norm && (units[k] as number) / norm;
  }
  const basis = units.slice();
  orthonormalise(basis, p, n);
  let q = 0;
  for (let i = 0; i < p; i++) {
    const row = basis.subarray(i * n, (i + 1) * n);
    if (row.every((value) => value === 0)) continue;
    basis.copyWithin(q * n, i * n, (i + 1) * n);
    q += 1;
  }
  const used = basis.slice(0, q * n);
  const coefficients = rowDots(units, p, used, q, n);
  for (let i = 0; i < p; i++) {
    for (let j = 0; j < q; j++) {
      coefficients[i * q + j] = (coefficients[i * q + j] as number) * (norms[i] as number);
    }
  }
  return { basis: used, q, coefficients };
}

/** Result of {@link factoredSvd}: `leftᵀ · right = Σᵢ u[i]ᵀ · s[i] · v[i]`. */
export interface FactoredSvd {
  /** [q, N] orthonormal rows. */
  readonly u: Float64Array;
  /** [q] descending, above 0. */
  readonly s: Float64Array;
  /** [q, K] orthonormal rows. The entry of largest magnitude of each is positive. */
  readonly v: Float64Array;
}

/**
 * The singular triplets of a matrix [N, K] that is given by factors, on the host in float64: orthonormal bases of both factors
 * and the SVD of what is between them. The time is O((N + K) R² + R³); the matrix itself is never formed.
 * @param left [R, N] rows
 * @param right [R, K] rows
 * @param rank leave out all triplets after so many
 */
export function factoredSvd(
  left: Float64Array,
  right: Float64Array,
  R: number,
  N: number,
  K: number,
  rank = R,
): FactoredSvd {
  const a = rowBasis(left, R, N);
  const b = rowBasis(right, R, K);
  const turnedA = transposed(a.coefficients, R, a.q);
  const turnedB = transposed(b.coefficients, R, b.q);
  const core = smallSvd(rowDots(turnedA, a.q, turnedB, b.q, R), a.q, b.q);
  const q = Math.min(rank, core.s.length);
  const u = rowDots(core.u.subarray(0, q * a.q), q, transposed(a.basis, a.q, N), N, a.q);
  const v = rowDots(core.v.subarray(0, q * b.q), q, transposed(b.basis, b.q, K), K, b.q);
  for (let i = 0; i < q; i++) {
    if (largestEntry(v, i * K, K) >= 0) continue;
    for (let n = i * N; n < (i + 1) * N; n++) u[n] = -(u[n] as number);
    for (let k = i * K; k < (i + 1) * K; k++) v[k] = -(v[k] as number);
  }
  return { u, s: core.s.slice(0, q), v };
}

function largestEntry(values: Float64Array, at: number, n: number): number {
  let largest = 0;
  for (let k = at; k < at + n; k++) {
    const value = values[k] as number;
    if (Math.abs(value) > Math.abs(largest)) largest = value;
  }
  return largest;
}
