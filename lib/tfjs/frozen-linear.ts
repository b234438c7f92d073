/**
 * A frozen linear layer as one differentiable TensorFlow.js op: y = x · dequant(w)ᵀ + bias.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../core/errors.js';
import { matmul, matmulInputGrad, type QuantizedWeight, Tensor } from '../index.js';
import { tensorFrom, valuesOf } from './backend-memory.js';
import { requireBias, requireLinearShapes, requireTfFloat } from './operands.js';
import { isRecording } from './saved-states.js';
import { tensorflow } from './tensorflow.js';

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
  const forward = () => {
    const xIn = Tensor.from(valuesOf(x), [M, K], { device: w.device });
    const y = matmul(xIn, w, bias === undefined ? {} : { bias });
    xIn.dispose();
    return readOut(y, [...x.shape.slice(0, -1), N]);
  };
  if (!isRecording()) return forward();
  const op = tensorflow().customGrad((_x: unknown) => ({
    value: forward(),
    gradFunc: (dy: TfTensor) => {
      if (isRecording()) {
        fail('ERR_UNSUPPORTED', kOp, 'the gradient', 'of first order', 'a gradient of a gradient');
      }
      const dyIn = Tensor.from(valuesOf(dy), [M, N], { device: w.device });
      const dx = matmulInputGrad(dyIn, w);
      dyIn.dispose();
      return [readOut(dx, x.shape)];
    },
  }));
  return op(x);
}

function readOut(result: Tensor, shape: readonly number[]): TfTensor {
  try {
    return tensorFrom(shape, (target) => result.readInto(target));
  } finally {
    result.dispose();
  }
}
