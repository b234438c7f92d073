import { fail } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { showShape } from '../../core/validate.js';
import { transposed } from '../rows.js';
import { thinQr } from '../thin-qr.js';
import { readMatrix, tensorLike } from './matrix.js';

/**
 * The thin QR decomposition `a = q · r` on the host in float64, by Cholesky-QR twice: orthogonal to the rounding of f32.
 * The diagonal of r is not negative. Where a column is in the span of those before it, the diagonal has a 0 to
 * float64, and the column of q is zero or any other direction.
 * @param a [n, p] of any dtype, with p ≤ n
 * @returns q [n, p] and r [p, p], f32 on the device of a
 * @throws ERR_TYPE · ERR_SHAPE if p > n · ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
 * @example
 * const { q, r } = qr(columns);
 */
export function qr(a: Tensor): { readonly q: Tensor; readonly r: Tensor } {
  const op = 'qr';
  const { rows: n, columns: p, values } = readMatrix(op, 'a', a);
  if (p > n) fail('ERR_SHAPE', op, 'a', 'of at most as many columns as rows', showShape([n, p]));
  const { q, r } = thinQr(transposed(values, n, p), p, n);
  return { q: tensorLike(transposed(q, p, n), [n, p], a), r: tensorLike(r, [p, p], a) };
}
