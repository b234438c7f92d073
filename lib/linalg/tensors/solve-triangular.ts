import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { checkSameDevice, readOptions } from '../../core/validate.js';
import { solveLower } from '../cholesky.js';
import { transposed as turned } from '../rows.js';
import { readMatrix, readSquare, tensorLike } from './matrix.js';

/** Options of {@link solveTriangular}. */
export interface SolveTriangularOptions {
  /** Is l upper-triangular? Then its lower triangle is not read. Default false. */
  upper?: boolean;
  /** Solve `lᵀ · x = b`. Default false. */
  transposed?: boolean;
}

/**
 * The x with `l · x = b` for a triangular l, on the host in float64 (n² · m operations).
 * @param l [n, n] of any dtype; the other triangle is not read
 * @param b [n, m] of any dtype
 * @returns x [n, m], f32 on the device of b
 * @throws ERR_VALUE if l has a 0 on its diagonal, with its index · ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_NON_FINITE ·
 * ERR_DISPOSED · ERR_OOM
 * @example
 * const half = solveTriangular(l, b); // with l = cholesky(a)
 * const x = solveTriangular(l, half, { transposed: true }); // a · x = b
 */
export function solveTriangular(l: Tensor, b: Tensor, options?: SolveTriangularOptions): Tensor {
  const op = 'solveTriangular';
  const { rows: n, values } = readSquare(op, 'l', l);
  const right = checkTensor(op, 'b', b);
  const { columns: m, values: x } = readMatrix(op, 'b', right);
  checkShape(op, 'b', right, [n, m]);
  checkSameDevice(op, 'b', right, l);
  const { upper = false, transposed = false } = readOptions(op, options, {
    upper: true,
    transposed: true,
  });
  for (const [name, flag] of Object.entries({ upper, transposed })) {
    if (typeof flag !== 'boolean') throw wrongType(op, name, 'a boolean', flag);
  }
  for (let i = 0; i < n; i++) {
    if (values[i * n + i] === 0) {
      fail('ERR_VALUE', op, 'l', 'without zeros on its diagonal', `one at index ${i}`);
    }
  }
  // The transpose of an upper triangle is a lower one.
  solveLower(upper ? turned(values, n, n) : values, n, x, m, upper !== transposed);
  return tensorLike(x, [n, m], right);
}
