/** Checks of operands that the ops of this folder share. */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail, wrongType } from '../../core/errors.js';
import type { QuantizedWeight, Tensor } from '../../index.js';
import { tensorflow } from './tensorflow.js';

/** Is a value a tensor of TensorFlow.js, from any copy of it? */
export function isTfTensor(value: unknown): value is TfTensor {
  return value instanceof tensorflow().Tensor;
}

/** @throws TypeError `ERR_TYPE` · LowrankError `ERR_DTYPE`, `ERR_DISPOSED` */
export function requireTfFloat(op: string, operand: string, value: unknown): void {
  if (!isTfTensor(value)) throw wrongType(op, operand, 'a TensorFlow.js tensor', value);
  if (value.isDisposed) fail('ERR_DISPOSED', op, operand, 'alive', 'a disposed tensor');
  if (value.dtype !== 'float32') fail('ERR_DTYPE', op, operand, 'float32', value.dtype);
}

/**
 * Checks the shapes of x [..., K] and w [N, K].
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`
 */
export function requireLinearShapes(
  op: string,
  x: TfTensor,
  w: QuantizedWeight | Tensor | TfTensor,
): { K: number; N: number } {
  if (w === null || typeof w !== 'object' || !Array.isArray(w.shape)) {
    const expected = 'a QuantizedWeight, a Tensor or a TensorFlow.js tensor';
    throw wrongType(op, 'w', expected, w);
  }
  if (isTfTensor(w)) requireTfFloat(op, 'w', w);
  const [N, K] = w.shape;
  if (w.shape.length !== 2 || N === undefined || K === undefined) {
    fail('ERR_SHAPE', op, 'w', '[N, K]', `[${w.shape.join(', ')}]`);
  }
  if (x.shape.length < 1 || x.shape[x.shape.length - 1] !== K || K === 0) {
    fail('ERR_SHAPE', op, 'x', `[..., ${K}] with K of at least 1`, `[${x.shape.join(', ')}]`);
  }
  return { K, N };
}

/** @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED` */
export function requireBias(op: string, bias: TfTensor | Tensor, N: number): void {
  if (isTfTensor(bias)) requireTfFloat(op, 'bias', bias);
  if (!Array.isArray(bias?.shape)) {
    throw wrongType(op, 'bias', 'a Tensor or a TensorFlow.js tensor', bias);
  }
  if (bias.shape.length !== 1 || bias.shape[0] !== N) {
    fail('ERR_SHAPE', op, 'bias', `[${N}]`, `[${bias.shape.join(', ')}]`);
  }
}
