/**
 * The kernel of a dense layer in this library's memory. TensorFlow.js keeps a stand-in without elements, and reads and
 * writes of the weight go to the library: `getWeights`, `setWeights`, saving and loading see a kernel [K, N].
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import { dequantize, QuantizedWeight, type Tensor } from '../../index.js';
import { tensorFrom, valuesOf } from '../ops/backend-memory.js';
import { tensorflow } from '../ops/tensorflow.js';
import type { LayerVariable } from './internals.js';

/** Who has the weight [N, K] of a frozen kernel. */
export interface KernelHolder {
  readonly base: QuantizedWeight | Tensor;
  /** @param values [N, K] */
  replaceBase(values: Float32Array): void;
}

/** Tensors that were handed out beyond any `tf.tidy`: they go with their last reference. */
const handedOut = new FinalizationRegistry<{ dataId: object; size: number }>((tensor) => {
  const engine = tensorflow().engine();
  engine.disposeTensor({ ...tensor, dtype: 'float32' } as unknown as TfTensor);
});

/** rows × cols to cols × rows. */
export function turned(values: Float32Array, rows: number, cols: number): Float32Array {
  const target = new Float32Array(values.length);
  turnInto(values, rows, cols, target);
  return target;
}

function turnInto(values: Float32Array, rows: number, cols: number, target: Float32Array): void {
  const tile = 32;
  for (let r0 = 0; r0 < rows; r0 += tile) {
    const r1 = Math.min(r0 + tile, rows);
    for (let c0 = 0; c0 < cols; c0 += tile) {
      const c1 = Math.min(c0 + tile, cols);
      for (let r = r0; r < r1; r++) {
        for (let c = c0; c < c1; c++) target[c * rows + r] = values[r * cols + c] as number;
      }
    }
  }
}

/** The weight [N, K] in f32. */
export function denseValues(base: QuantizedWeight | Tensor): Float32Array {
  if (!QuantizedWeight.is(base)) return base.readSync();
  const dense = dequantize(base);
  try {
    return dense.readSync();
  } finally {
    dense.dispose();
  }
}

/** Frees the variable behind a kernel and lets `holder` answer for it. */
export function freezeKernel(kernel: LayerVariable, holder: KernelHolder): void {
  const tf = tensorflow();
  const [K, N] = kernel.shape as [number, number];
  kernel.val.dispose();
  kernel.val = tf.keep(tf.zeros([0, 0]));
  kernel.trainable = false;
  kernel.read = () => {
    requireAlive(kernel);
    const values = denseValues(holder.base);
    const tensor = tensorFrom([K, N], (target) => turnInto(values, N, K, target));
    if (tf.engine().state.scopeStack.length === 0) {
      const { dataId } = tensor;
      handedOut.register(tensor, { dataId, size: K * N }, tensor);
      tensor.dispose = () => {
        handedOut.unregister(tensor);
        Object.getPrototypeOf(tensor).dispose.call(tensor);
      };
    }
    return tensor;
  };
  kernel.write = (value) => {
    requireAlive(kernel);
    if (value.shape.join() !== kernel.shape.join()) {
      const expected = `of shape [${kernel.shape.join(', ')}]`;
      fail('ERR_SHAPE', kernel.name, 'the value', expected, `[${value.shape.join(', ')}]`);
    }
    holder.replaceBase(turned(valuesOf(value), K, N));
    return kernel;
  };
}

/** Makes it an ordinary weight again, with `values` [N, K]. */
export function thawKernel(kernel: LayerVariable, values: Float32Array, trainable: boolean): void {
  const tf = tensorflow();
  const [K, N] = kernel.shape as [number, number];
  delete (kernel as Partial<LayerVariable>).read;
  delete (kernel as Partial<LayerVariable>).write;
  kernel.val.dispose();
  tf.tidy(() => {
    const value = tensorFrom([K, N], (target) => turnInto(values, N, K, target));
    kernel.val = tf.variable(value, trainable, kernel.name, 'float32');
  });
  kernel.trainable = trainable;
}

function requireAlive(kernel: LayerVariable): void {
  if (kernel.val.isDisposed)
    fail('ERR_DISPOSED', kernel.name, 'the weight', 'alive', 'a disposed one');
}
