/**
 * A linear layer with an adapter of any method as one differentiable TensorFlow.js op. The
 * library's kernels run the forward and backward pass, as the method's tape defines them.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import {
  type Adapter,
  type AdapterGradients,
  type AdapterSaved,
  type QuantizedWeight,
  Tensor,
} from '../../index.js';
import { tensorFrom, valuesOf } from './backend-memory.js';
import { requireLinearShapes, requireTfFloat } from './operands.js';
import { isRecording, keepState, releaseState } from './saved-states.js';
import { tensorflow } from './tensorflow.js';

const kOp = 'tfjs.adapterLinear';

/** Options of {@link adapterLinear}. */
export interface AdapterLinearOptions {
  /** Seed of the dropout masks and samples of this pass; must differ between steps and layers. */
  readonly seed?: number;
  /** Does the method drop and sample? Default: while a gradient is being recorded. */
  readonly training?: boolean;
  /** `false` if nothing before x is trained: the gradient of x then costs nothing. Default true. */
  readonly inputGrad?: boolean;
}

/**
 * A linear layer with an adapter, differentiable in TensorFlow.js.
 *
 * @param x [..., K] float32
 * @param w [N, K], frozen
 * @param adapter its trained tensors get the values of `parameters` before each pass
 * @param parameters the trained tensors by name, float32; each gets a gradient
 * @returns y [..., N] float32, on the current backend
 * @throws LowrankError `ERR_SHAPE`, `ERR_VALUE` (a parameter is missing), `ERR_DISPOSED`,
 *   `ERR_UNSUPPORTED` (second-order gradients) · TypeError `ERR_TYPE`
 * @example
 * const y = adapterLinear(x, w4, adapter, { lambdaB, lambdaD });
 */
export function adapterLinear(
  x: TfTensor,
  w: QuantizedWeight | Tensor,
  adapter: Adapter,
  parameters: Readonly<Record<string, TfTensor>>,
  options: AdapterLinearOptions = {},
): TfTensor {
  requireTfFloat(kOp, 'x', x);
  const { K, N } = requireLinearShapes(kOp, x, w);
  const M = x.size / K;
  const names = Object.keys(adapter.parameters);
  for (const name of names) {
    if (parameters[name] === undefined) {
      const given = Object.keys(parameters).join(', ') || 'none';
      fail(
        'ERR_VALUE',
        kOp,
        'parameters',
        `those of ${adapter.method} (${names.join(', ')})`,
        given,
      );
    }
    requireTfFloat(kOp, name, parameters[name]);
  }
  const recording = isRecording();
  const training = options.training ?? recording;
  const { seed } = options;
  const forward = (): { value: TfTensor; saved: AdapterSaved } => {
    for (const name of names) {
      adapter.parameters[name]?.write(Float32Array.from(valuesOf(parameters[name] as TfTensor)));
    }
    const xIn = Tensor.from(valuesOf(x), [M, K], { device: w.device });
    try {
      const { y, saved } = adapter.forward(xIn, w, {
        training,
        ...(seed === undefined ? {} : { seed }),
      });
      try {
        const shape = [...x.shape.slice(0, -1), N];
        return { value: tensorFrom(shape, (target) => y.readInto(target)), saved };
      } finally {
        y.dispose();
      }
    } finally {
      xIn.dispose();
    }
  };
  if (!recording) {
    const { value, saved } = forward();
    saved.dispose();
    return value;
  }
  const inputGrad = options.inputGrad ?? true;
  const op = tensorflow().customGrad(() => {
    const { value, saved } = forward();
    keepState(saved);
    const gradFunc = (dy: TfTensor): TfTensor[] => {
      const needs = [...(inputGrad ? ['dx'] : []), ...names];
      const { dx, parameters: found } = backward(adapter, saved, dy, [M, N], w.device, needs);
      const gradients = [...(inputGrad ? [dx] : []), ...names.map((name) => found[name])];
      const shapes = [
        ...(inputGrad ? [x.shape] : []),
        ...names.map((name) => (parameters[name] as TfTensor).shape),
      ];
      try {
        return shapes.map((shape, i) => {
          const gradient = gradients[i];
          if (gradient === undefined) return tensorflow().zeros(shape as number[]);
          return tensorFrom(shape, (target) => gradient.readInto(target));
        });
      } finally {
        for (const gradient of gradients) gradient?.dispose();
      }
    };
    return { value, gradFunc };
  });
  const trained = names.map((name) => parameters[name] as TfTensor);
  return op(...(inputGrad ? [x] : []), ...trained);
}

function backward(
  adapter: Adapter,
  saved: AdapterSaved,
  dy: TfTensor,
  shape: readonly number[],
  device: Tensor['device'],
  needs: readonly string[],
): AdapterGradients {
  if (isRecording()) {
    fail('ERR_UNSUPPORTED', kOp, 'the gradient', 'of first order', 'a gradient of a gradient');
  }
  if (saved.disposed) {
    const expected = 'taken once, before its tape is gone';
    fail('ERR_DISPOSED', kOp, 'the gradient', expected, 'a later call');
  }
  const dyIn = Tensor.from(valuesOf(dy), shape, { device });
  try {
    return adapter.backward(dyIn, saved, { needs });
  } finally {
    dyIn.dispose();
    releaseState(saved);
    saved.dispose();
  }
}
