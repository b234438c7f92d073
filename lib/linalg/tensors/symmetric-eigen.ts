import { fail } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { symmetricEigen as eigenOf } from '../symmetric-eigen.js';
import { readSquare, tensorLike } from './matrix.js';

/** How far from symmetric a matrix may be, relative to its largest entry. */
const ASYMMETRY = 1e-5;

/**
 * Eigenvalues and eigenvectors of a symmetric matrix, `a = vectorsᵀ · diag(values) · vectors`, on the host in float64: some
 * seconds for a thousand rows. The entry of largest magnitude of each vector is positive, the first of several.
 * @param a [n, n] of any dtype
 * @returns values [n] descending; vectors [n, n] f32 on the device of a, row i for value i
 * @throws ERR_VALUE if a is not symmetric · ERR_TYPE · ERR_SHAPE · ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
 * @example
 * const { values, vectors } = symmetricEigen(gram);
 */
export function symmetricEigen(a: Tensor): {
  readonly values: Float64Array;
  readonly vectors: Tensor;
} {
  const op = 'symmetricEigen';
  const { rows: n, values: given } = readSquare(op, 'a', a);
  const most = given.reduce((sum, v) => Math.max(sum, Math.abs(v)), 0);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      const [lower, upper] = [given[i * n + j] as number, given[j * n + i] as number];
      if (Math.abs(lower - upper) <= ASYMMETRY * most) continue;
      fail('ERR_VALUE', op, 'a', 'symmetric', `${lower} and ${upper} at [${i}, ${j}]`);
    }
  }
  const { values, vectors } = eigenOf(given, n);
  for (let i = 0; i < n; i++) {
    const row = vectors.subarray(i * n, (i + 1) * n);
    let largest = 0;
    for (const value of row) if (Math.abs(value) > Math.abs(largest) * (1 + 1e-6)) largest = value;
    if (largest < 0) for (let k = 0; k < n; k++) row[k] = -(row[k] as number);
  }
  return { values, vectors: tensorLike(vectors, [n, n], a) };
}
