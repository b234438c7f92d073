import type { NativeHandle } from '../core/binding.js';
import { checkMixes, checkTensor, lastDim } from '../core/check-tensor.js';
import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, showShape } from '../core/validate.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';

/** A frozen base weight [N, K]: dense, or quantised. */
export type BaseWeight = Tensor | QuantizedWeight;

/** Checks for a live base weight and returns its dimensions. @throws ERR_TYPE, ERR_DISPOSED, ERR_SHAPE */
export function checkWeight(
  op: string,
  w: unknown,
  operand = 'w',
): { weight: BaseWeight; handle: NativeHandle; N: number; K: number } {
  if (!Tensor.is(w) && !QuantizedWeight.is(w)) {
    throw wrongType(op, operand, 'a Tensor or a QuantizedWeight', w);
  }
  const handle =
    w instanceof Tensor
      ? Tensor.handleOf(w, op, operand)
      : QuantizedWeight.handleOf(w, op, operand);
  if (w.shape.length !== 2) fail('ERR_SHAPE', op, operand, 'of shape [N, K]', showShape(w.shape));
  return { weight: w, handle, N: w.shape[0] ?? 0, K: w.shape[1] ?? 0 };
}

/**
 * Checks activations against the weight: the last dimension is `size` (the weight's `dim`), the
 * device is the same, the dtypes mix.
 * @throws ERR_SHAPE, ERR_DEVICE, ERR_DTYPE
 */
export function checkActivations(
  op: string,
  operand: string,
  value: Tensor,
  weight: BaseWeight,
  dim: 'N' | 'K',
  size: number,
): void {
  if (value.shape.length === 0 || lastDim(value) !== size) {
    fail('ERR_SHAPE', op, operand, `of shape [..., ${dim} = ${size}]`, showShape(value.shape));
  }
  checkSameDevice(op, 'w', weight, value);
  if (weight instanceof Tensor) checkMixes(op, 'w', weight, value);
}

/** The shape of `value` with another last dimension. */
export function withLast(value: Tensor, last: number): readonly number[] {
  return Object.freeze([...value.shape.slice(0, -1), last]);
}

/**
 * Checks an adapter factor, a matrix. `dim` is the dimension whose size another operand fixes.
 * @throws ERR_TYPE, ERR_DISPOSED, ERR_SHAPE, ERR_DEVICE
 */
export function checkFactor(
  op: string,
  operand: string,
  value: unknown,
  form: string,
  dim: 0 | 1,
  size: number,
  near: { readonly device: string },
): Tensor {
  const tensor = checkTensor(op, operand, value);
  if (tensor.shape.length !== 2 || tensor.shape[dim] !== size) {
    fail('ERR_SHAPE', op, operand, `of shape ${form}`, showShape(tensor.shape));
  }
  checkSameDevice(op, operand, tensor, near);
  return tensor;
}
