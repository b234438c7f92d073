/**
 * Element-wise parts of the model as custom TensorFlow.js ops.
 *
 * Composed of stock ops, an RMSNorm or a masked softmax takes five to ten passes over memory forward
 * and as many backward, and each pass of the wasm backend's generic kernels costs about 10 ns per
 * element (measured). One loop in JavaScript over the same memory costs 1 to 2 ns per element, plus 5
 * ns for an exponential.
 */

import type { Tensor } from '@tensorflow/tfjs';
import { isRecording } from '../../tfjs/ops/saved-states.js';
import { tensorflow } from '../../tfjs/ops/tensorflow.js';

/** The result of a forward pass, and the tensors that the backward pass reads. */
export interface Forward {
  readonly value: Tensor;
  readonly saved: Tensor[];
}

/**
 * Runs `forward`. While a gradient is being recorded, it keeps the saved tensors and registers
 * `backward`.
 *
 * @param inputs the differentiable operands
 * @param backward gets dy and the saved tensors; returns one gradient per input
 */
export function customOp(
  inputs: readonly Tensor[],
  forward: () => Forward,
  backward: (dy: Tensor, saved: readonly Tensor[]) => Tensor[],
): Tensor {
  const tf = tensorflow();
  if (!isRecording()) return tf.tidy(() => forward().value);
  const op = tf.customGrad((...args: unknown[]) => {
    const { value, saved } = forward();
    (args[inputs.length] as (tensors: Tensor[]) => void)(saved);
    return { value, gradFunc: (dy: Tensor, kept: Tensor[]) => backward(dy, kept) };
  });
  return op(...inputs);
}
