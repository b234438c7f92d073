/** What the tests of this folder share: models of dense layers, and the same in plain ops. */

import type { LayersModel, Tensor as TfTensor, Variable } from '@tensorflow/tfjs';
import { expect } from 'vitest';
import { memoryUsage } from '../../lib/index.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { randomValues } from '../finetune/setup.js';

export function randomTensor(shape: number[], seed: number): TfTensor {
  const size = shape.reduce((product, dim) => product * dim, 1);
  return tensorflow().tensor(randomValues(size, seed), shape);
}

/** Dense layers of these widths with weights of a seed: relu between, linear at the end. */
export function mlp(widths: readonly number[], prefix: string, outer: number[] = []): LayersModel {
  const tf = tensorflow();
  const model = tf.sequential();
  widths.slice(1).forEach((units, i) => {
    model.add(
      tf.layers.dense({
        units,
        name: `${prefix}${i}`,
        activation: i === widths.length - 2 ? 'linear' : 'relu',
        ...(i === 0 ? { inputShape: [...outer, widths[0] as number] } : {}),
      }),
    );
  });
  model.layers.forEach((layer, i) => {
    const [K, N] = [widths[i] as number, widths[i + 1] as number];
    const scale = 1 / Math.sqrt(K);
    const kernel = tf.mul(randomTensor([K, N], 10 + i), scale);
    layer.setWeights([kernel, tf.mul(randomTensor([N], 20 + i), 0.1)]);
  });
  return model;
}

/** One dense layer with LoRA in ops of TensorFlow.js. */
export interface PlainLayer {
  readonly kernel: TfTensor;
  readonly bias: TfTensor;
  readonly loraA: Variable;
  readonly loraB: Variable;
}

/** The layers of an adapted model as plain ops, with copies of its values. */
export function plainLayers(model: LayersModel): PlainLayer[] {
  const tf = tensorflow();
  return model.layers.map((layer) => {
    const [a, b, kernel, bias] = layer.getWeights() as [TfTensor, TfTensor, TfTensor, TfTensor];
    const copy = (tensor: TfTensor) => tf.tensor(tensor.dataSync().slice(), tensor.shape);
    return {
      kernel: copy(kernel),
      bias: copy(bias),
      loraA: tf.variable(copy(a)),
      loraB: tf.variable(copy(b)),
    };
  });
}

export function plainForward(
  layers: readonly PlainLayer[],
  x: TfTensor,
  scaling: number,
): TfTensor {
  const tf = tensorflow();
  let h = x;
  layers.forEach(({ kernel, bias, loraA, loraB }, i) => {
    const low = tf.matMul(tf.matMul(h, loraA, false, true), loraB, false, true);
    h = tf.add(tf.add(tf.matMul(h, kernel), tf.mul(low, scaling)), bias);
    if (i < layers.length - 1) h = tf.relu(h);
  });
  return h;
}

/** The bits of a tensor's values. */
export function bitsOf(tensor: TfTensor): Uint32Array {
  return new Uint32Array(Float32Array.from(tensor.dataSync()).buffer);
}

/** Tensors of both libraries that are alive. */
export function counters() {
  return { ours: memoryUsage().liveTensors, theirs: tensorflow().memory().numTensors };
}

/** The largest difference relative to the largest value. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  limit: number,
  what: string,
) {
  expect(actual.length, what).toBe(expected.length);
  let [worst, scale] = [0, 1e-12];
  for (let i = 0; i < expected.length; i++) {
    worst = Math.max(worst, Math.abs((actual[i] as number) - (expected[i] as number)));
    scale = Math.max(scale, Math.abs(expected[i] as number));
  }
  expect(worst / scale, what).toBeLessThan(limit);
}
