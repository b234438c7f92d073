/** A perceptron of `tf.layers`, trained in full and with LoRA. */

import type { LayersModel, Scalar, Tensor } from '@tensorflow/tfjs';
import { applyLora, register, unregister } from '../../tfjs/index.js';
import { tensorflow } from '../../tfjs/ops/tensorflow.js';
import { type TrainerRow, takeTurns } from './trainer.js';

/** The size of the model and of the run. */
export interface TfjsLayersOptions {
  /** Inputs, and units of two hidden layers; the output has 10. Default 512. */
  readonly width?: number;
  /** Rows of a batch. Default 256. */
  readonly batch?: number;
  /** Default 12. */
  readonly steps?: number;
}

function build(width: number): LayersModel {
  const tf = tensorflow();
  const layer = (units: number, seed: number, activation: 'relu' | 'linear') =>
    tf.layers.dense({
      units,
      activation,
      inputShape: [width],
      kernelInitializer: tf.initializers.glorotUniform({ seed }),
    });
  return tf.sequential({
    layers: [layer(width, 1, 'relu'), layer(width, 2, 'relu'), layer(10, 3, 'linear')],
  });
}

/** The same layers with LoRA, in ops of TensorFlow.js, from the weights of an adapted model. */
function inOps(model: LayersModel, scaling: number) {
  const tf = tensorflow();
  const own = (tensor: Tensor) => tf.tensor(tensor.dataSync().slice(), tensor.shape);
  const layers = model.layers.map((layer) => {
    const [a, b, kernel, bias] = tf.tidy(() => layer.getWeights().map((w) => tf.keep(own(w))));
    const parts = { kernel: kernel as Tensor, bias: bias as Tensor };
    return { ...parts, a: tf.variable(a as Tensor), b: tf.variable(b as Tensor) };
  });
  const forward = (x: Tensor) =>
    layers.reduce((h, { a, b, kernel, bias }, i) => {
      const low = tf.matMul(tf.matMul(h, a, false, true), b, false, true);
      const y = tf.add(tf.add(tf.matMul(h, kernel), tf.mul(low, scaling)), bias);
      return i < layers.length - 1 ? tf.relu(y) : y;
    }, x);
  return { forward, trained: layers.flatMap(({ a, b }) => [a, b]) };
}

/**
 * Rows of the trainer `tfjs-layers` on a backend: all weights with `register()`, and LoRA with `applyLora`, dense and
 * NF4, against LoRA in ops of TensorFlow.js.
 *
 * @param backend whose module has been imported
 */
export async function tfjsLayers(
  backend: 'cpu' | 'wasm',
  { width = 512, batch = 256, steps = 12 }: TfjsLayersOptions = {},
): Promise<TrainerRow[]> {
  const tf = tensorflow();
  tf.enableProdMode();
  if (!(await tf.setBackend(backend))) throw new Error(`no ${backend} backend`);
  const [x, y] = [
    tf.randomNormal([batch, width], 0, 1, 'float32', 5),
    tf.randomNormal([batch, 10], 0, 1, 'float32', 6),
  ];
  const stock = <T>(step: () => T): T => {
    unregister(backend);
    return step();
  };
  const replaced = <T>(step: () => T): T => {
    register({ backend, kernels: 'all' });
    return step();
  };
  const onBatch = (model: LayersModel) => async () => (await model.trainOnBatch(x, y)) as number;
  const compile = (model: LayersModel) => {
    model.compile({ optimizer: tf.train.adam(1e-3), loss: 'meanSquaredError' });
    return model;
  };
  const about = { trainer: 'tfjs-layers', backend };
  const rows: TrainerRow[] = [];
  try {
    const [theirs, ours] = [onBatch(compile(build(width))), onBatch(compile(build(width)))];
    const full = await takeTurns(
      () => stock(theirs),
      () => replaced(ours),
      steps,
    );
    rows.push({ ...about, variant: 'all weights, register()', lines: 2, ...full });
    for (const format of [undefined, 'nf4'] as const) {
      const model = build(width);
      const settings = { r: 8, loraAlpha: 16, seed: 1 };
      const lora = applyLora(model, { ...settings, ...(format === undefined ? {} : { format }) });
      const { forward, trained } = inOps(model, 2);
      const optimizer = tf.train.adam(1e-3);
      const step = async () => {
        const loss = optimizer.minimize(
          () => tf.losses.meanSquaredError(y, forward(x)) as Scalar,
          true,
          trained,
        ) as Scalar;
        const [value] = loss.dataSync();
        loss.dispose();
        return value as number;
      };
      const adapted = onBatch(compile(model));
      const found = await takeTurns(
        () => stock(step),
        () => replaced(adapted),
        steps,
      );
      const { baseBytes, denseBytes } = lora.memory();
      const variant = `LoRA, applyLora(), ${format ?? 'f32'}`;
      rows.push({ ...about, variant, lines: 3, ...found, baseMemory: baseBytes / denseBytes });
      lora.dispose();
    }
  } finally {
    unregister(backend);
    tf.dispose([x, y]);
  }
  return rows;
}
