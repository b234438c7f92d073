import { native } from '../core/binding.js';
import { checkShape, checkTensor, lastDim } from '../core/check-tensor.js';
import { checkDType, type DType } from '../core/dtype.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, orDefault, readOptions, showShape } from '../core/validate.js';
import { withLast } from './base-weight.js';
import { WantedGradients } from './gradients.js';

/** Options of {@link weightGrad}. */
export interface WeightGradOptions {
  /** Dtype of the result; default f32. */
  dtype?: DType;
  /** [N, K] of any dtype: adds to this tensor instead of making a new one, and returns it. */
  accumulateInto?: Tensor;
}

/**
 * The gradient of a dense weight, `dW = dyᵀ · x`: for a small layer, a projection or an r × r core.
 * Sums in f32, in an order that depends on M only.
 * @param dy [..., N] any dtype
 * @param x [..., K] any dtype, with the same leading dimensions as dy
 * @returns dW [N, K]
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ALIAS, ERR_DISPOSED, ERR_OOM
 * @example
 * const dCore = weightGrad(dh2, h); // of h2 = h · coreᵀ
 */
export function weightGrad(dy: Tensor, x: Tensor, options?: WeightGradOptions): Tensor {
  const op = 'weightGrad';
  checkTensor(op, 'dy', dy);
  if (dy.shape.length === 0) fail('ERR_SHAPE', op, 'dy', 'of shape [..., N]', showShape([]));
  checkTensor(op, 'x', x);
  if (x.shape.length === 0) fail('ERR_SHAPE', op, 'x', 'of shape [..., K]', showShape([]));
  checkShape(op, 'x', x, withLast(dy, lastDim(x)));
  checkSameDevice(op, 'x', x, dy);
  const given = readOptions(op, options, { dtype: true, accumulateInto: true });
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, 'f32'));
  const { accumulateInto } = given;
  const wanted = new WantedGradients<'dW'>(
    op,
    { dW: { shape: [lastDim(dy), lastDim(x)], dtype, anyDType: true } },
    ['dW'],
    accumulateInto === undefined ? {} : { accumulateInto: { dW: accumulateInto } },
    dy,
  );
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const xHandle = Tensor.handleOf(x, op, 'x');
  const wantedRaw = wanted.raw(op);
  const { dW } = wanted.adopt(native(op, (raw) => raw.weightGrad(dyHandle, xHandle, wantedRaw)));
  if (accumulateInto !== undefined) Tensor.written(accumulateInto);
  return dW as Tensor;
}
