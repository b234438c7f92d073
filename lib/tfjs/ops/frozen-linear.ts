/**
 * A frozen linear layer as one differentiable TensorFlow.js op: y = x · dequant(w)ᵀ + bias.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { matmul, matmulInputGrad, type QuantizedWeight, Tensor } from '../../index.js';
import { multiplyBorrowed, takesBorrowed } from '../../ops/borrowed.js';
import { tensorFrom, tensorInfoFrom, valuesOf } from './backend-memory.js';
import { gradientOp } from './gradient-op.js';
import { requireBias, requireLinearShapes, requireTfFloat } from './operands.js';

const kOp = 'tfjs.frozenLinear';

/** Options of {@link frozenLinear}. */
export interface FrozenLinearOptions {
  /** [N], also frozen. */
  readonly bias?: Tensor;
}

/**
 * A linear layer with a frozen weight. Only x has a gradient: dx = dy · dequant(w). The backward pass
 * needs only w, so nothing is saved.
 *
 * @param x [..., K] float32
 * @param w [N, K]; it must live until the gradient has been computed
 * @returns y [..., N] float32, on the current backend
 * @throws LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_UNSUPPORTED` (second-order
 *   gradients) · TypeError `ERR_TYPE`
 * @example
 * const logits = frozenLinear(hidden, embedding); // a tied output head
 */
export function frozenLinear(
  x: TfTensor,
  w: QuantizedWeight | Tensor,
  options: FrozenLinearOptions = {},
): TfTensor {
  requireTfFloat(kOp, 'x', x);
  const { K, N } = requireLinearShapes(kOp, x, w);
  const { bias } = options;
  if (bias !== undefined) requireBias(kOp, bias, N);
  const M = x.size / K;
  const shape = [...x.shape.slice(0, -1), N];
  const forward = () =>
    tensorInfoFrom(shape, (y) => {
      if (takesBorrowed(w)) {
        const given = bias?.readSync();
        multiplyBorrowed(w.device, { form: 'abT', M, N, K, bias: given }, valuesOf(x), w, y);
        return;
      }
      copied(valuesOf(x), [M, K], y, (xIn) => matmul(xIn, w, bias === undefined ? {} : { bias }));
    });
  const backward = (dy: TfTensor) => ({
    x: () =>
      tensorFrom(x.shape, (dx) => {
        if (takesBorrowed(w)) {
          multiplyBorrowed(w.device, { form: 'ab', M, N: K, K: N }, valuesOf(dy), w, dx);
          return;
        }
        copied(valuesOf(dy), [M, N], dx, (dyIn) => matmulInputGrad(dyIn, w));
      }),
  });
  const copied = (
    values: Float32Array,
    size: readonly number[],
    target: Float32Array,
    product: (operand: Tensor) => Tensor,
  ) => {
    const operand = Tensor.from(values, size, { device: w.device });
    try {
      const result = product(operand);
      try {
        result.readInto(target);
      } finally {
        result.dispose();
      }
    } finally {
      operand.dispose();
    }
  };
  return gradientOp(kOp, { x }, forward, backward);
}
