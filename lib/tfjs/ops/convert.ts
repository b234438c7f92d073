/** Converts tensors between the libraries. Both directions copy. */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { type Device, type DType, Tensor } from '../../index.js';
import { tensorFrom, valuesOf } from './backend-memory.js';
import { requireTfFloat } from './operands.js';

/**
 * Copies a TensorFlow.js tensor into this library.
 *
 * @param tensor float32
 * @returns a tensor of the same shape; free it with `dispose()`
 * @throws LowrankError `ERR_DTYPE`, `ERR_DISPOSED` · TypeError `ERR_TYPE`
 * @example
 * const w = quantize(fromTfjs(kernel), { format: 'nf4' });
 */
export function fromTfjs(
  tensor: TfTensor,
  options: { readonly dtype?: DType; readonly device?: Device } = {},
): Tensor {
  requireTfFloat('fromTfjs', 'tensor', tensor);
  return Tensor.from(valuesOf(tensor), tensor.shape, options);
}

/**
 * Copies a tensor of this library into a float32 tensor on TensorFlow.js' current backend.
 *
 * @returns a tensor of the same shape, tracked by the surrounding `tf.tidy`
 * @throws LowrankError `ERR_DISPOSED`, and the errors of the ops that compute it
 * @example
 * const y = toTfjs(dequantize(w));
 */
export function toTfjs(tensor: Tensor): TfTensor {
  return tensorFrom(tensor.shape, (target) => tensor.readInto(target));
}
