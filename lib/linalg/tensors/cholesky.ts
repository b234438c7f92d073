import type { Device } from '../../core/device.js';
import { LowrankError } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { matmul } from '../../ops/matmul.js';
import { choleskyRows, type PanelProduct } from '../cholesky.js';
import { readSquare, tensorLike } from './matrix.js';

/** Above this size the products of the blocked factorisation run natively. */
const MOST_ON_HOST = 1024;

/**
 * The Cholesky factor of a symmetric positive definite matrix, `a = l · lᵀ`, block by block in float64. Above 1,024 rows the
 * products of blocks run natively on the device in f32; sums stay in float64.
 * @param a [n, n] of any dtype; only the lower triangle is read
 * @returns l [n, n], lower-triangular, f32 on the device of a
 * @throws ERR_VALUE if a is not positive definite, with the index and the value of the pivot · ERR_TYPE · ERR_SHAPE ·
 * ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
 * @example
 * const l = cholesky(gram);
 */
export function cholesky(a: Tensor): Tensor {
  const { rows: n, values } = readSquare('cholesky', 'a', a);
  return tensorLike(positiveFactor('cholesky', 'a', values, n, a.device), [n, n], a);
}

/**
 * @internal The factor in float64.
 * @throws ERR_VALUE if there is none
 */
export function positiveFactor(
  op: string,
  name: string,
  values: Float64Array,
  n: number,
  device: Device,
): Float64Array {
  const { l, failed } = choleskyRows(values, n, n > MOST_ON_HOST ? productOn(device) : undefined);
  if (failed === undefined) return l;
  const { index, pivot } = failed;
  const text = `${op}: ${name} must be positive definite, got the pivot ${pivot} at index ${index}`;
  throw new LowrankError('ERR_VALUE', text, { op });
}

const productOn =
  (device: Device): PanelProduct =>
  (rows, m, p) =>
    scope(() => {
      const panel = Tensor.from(Float32Array.from(rows), [m, p], { device });
      return matmul(panel, panel).readSync();
    });
