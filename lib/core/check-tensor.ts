/** Checks what a tensor is: live, of a shape, of a dtype. The checks of plain values are in validate.ts. */
import { fail, wrongType } from './errors.js';
import { Tensor } from './tensor.js';
import { showShape } from './validate.js';

/** Checks for a live {@link Tensor}. @throws ERR_TYPE, ERR_DISPOSED */
export function checkTensor(op: string, operand: string, value: unknown): Tensor {
  if (!Tensor.is(value)) throw wrongType(op, operand, 'a Tensor', value);
  if (value.disposed) fail('ERR_DISPOSED', op, operand, 'a live tensor', 'a disposed one');
  return value;
}

/** Last dimension of a tensor; 1 for a scalar. */
export function lastDim(tensor: Tensor): number {
  return tensor.shape.at(-1) ?? 1;
}

/** @throws ERR_SHAPE */
export function checkShape(
  op: string,
  operand: string,
  tensor: Tensor,
  expected: readonly number[],
): void {
  const { shape } = tensor;
  if (shape.length !== expected.length || shape.some((dim, i) => dim !== expected[i])) {
    fail('ERR_SHAPE', op, operand, `of shape ${showShape(expected)}`, showShape(shape));
  }
}

/** Checks for a vector of `length` values, as [length] or [1, length]. @throws ERR_SHAPE */
export function checkVector(op: string, operand: string, tensor: Tensor, length: number): void {
  const { shape } = tensor;
  const flat = shape.length === 2 && shape[0] === 1 ? shape.slice(1) : shape;
  if (flat.length !== 1 || flat[0] !== length) {
    fail('ERR_SHAPE', op, operand, `of shape [${length}]`, showShape(shape));
  }
}

/** f32 mixes with either 16-bit type; the two 16-bit types do not mix. @throws ERR_DTYPE */
export function checkMixes(op: string, operand: string, tensor: Tensor, with_: Tensor): void {
  const { dtype } = tensor;
  if (dtype === with_.dtype || dtype === 'f32' || with_.dtype === 'f32') return;
  fail('ERR_DTYPE', op, operand, `${with_.dtype} or f32`, dtype);
}
