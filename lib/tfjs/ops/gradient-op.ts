/**
 * Differentiable ops whose gradients are computed one by one, and only those that the tape needs. With `tf.customGrad`
 * the gradient of an op's input is computed even where nothing before it is trained, which costs as much as the op.
 *
 * TensorFlow.js has that for kernels. So there is one kernel for all ops of this folder, whose attributes are the
 * functions to run: it knows nothing of the copy of this library that registered it.
 */

import type { KernelConfig, NamedAttrMap, Tensor, TensorInfo } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import { isRecording, keepState } from './saved-states.js';
import { tensorflow } from './tensorflow.js';

const kKernel = 'LowrankOp';

/** The inputs of an op by name. */
export type OpInputs = Readonly<Record<string, Tensor>>;

interface OpFunctions {
  readonly forward: () => TensorInfo;
  readonly backward: (dy: Tensor, saved: readonly Tensor[]) => Record<number, () => Tensor>;
}

/**
 * Runs an op.
 *
 * @param inputs those with a gradient; the tape keeps all of them until its end
 * @param forward the value; nothing tracks it yet
 * @param backward the gradient of each input, as functions. `saved` has the inputs, in their order
 */
export function gradientOp(
  op: string,
  inputs: OpInputs,
  forward: () => TensorInfo,
  backward: (dy: Tensor, saved: readonly Tensor[]) => Record<string, () => Tensor>,
): Tensor {
  const tf = tensorflow();
  const backendName = tf.getBackend();
  if (tf.getKernel(kKernel, backendName) === undefined) {
    const kernelFunc = (({ attrs }: { attrs: unknown }) =>
      (attrs as OpFunctions).forward()) as unknown as KernelConfig['kernelFunc'];
    tf.registerKernel({ kernelName: kKernel, backendName, kernelFunc });
  }
  if (tf.getGradient(kKernel) === undefined) {
    tf.registerGradient({
      kernelName: kKernel,
      saveAllInputs: true,
      gradFunc: (dy, saved, attrs) =>
        (attrs as unknown as OpFunctions).backward(dy as Tensor, saved),
    });
  }
  // TensorFlow.js saves all inputs of a kernel only if they are an array.
  const names = Object.keys(inputs);
  const functions: OpFunctions = {
    forward,
    backward: (dy, saved) => {
      requireFirstOrder(op);
      const gradients = Object.entries(backward(dy, saved));
      return Object.fromEntries(
        gradients.map(([name, gradient]) => [names.indexOf(name), gradient]),
      );
    },
  };
  const attrs = functions as unknown as NamedAttrMap;
  const value = tf.engine().runKernel(kKernel, Object.values(inputs) as never, attrs) as Tensor;
  if (isRecording()) sweepSaved();
  return value;
}

/**
 * The engine frees what a tape has saved when its gradients are there. After an exception it never does, and it is freed
 * here.
 */
function sweepSaved(): void {
  const tape = tensorflow().engine().state.activeTape as readonly { saved?: readonly Tensor[] }[];
  const saved = tape[tape.length - 1]?.saved ?? [];
  keepState({
    dispose: () => {
      for (const tensor of saved) if (!tensor.isDisposed) tensor.dispose();
    },
  });
}

/** @throws LowrankError `ERR_UNSUPPORTED` in a gradient that is itself recorded for one */
export function requireFirstOrder(op: string): void {
  if (!isRecording()) return;
  fail('ERR_UNSUPPORTED', op, 'the gradient', 'of first order', 'a gradient of a gradient');
}
