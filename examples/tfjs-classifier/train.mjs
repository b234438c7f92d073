// A new head on a trained network, without and with LoRA in its body: node examples/tfjs-classifier/train.mjs [--epochs N]
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import * as tf from '@tensorflow/tfjs';
import '@tensorflow/tfjs-backend-wasm';
import { applyLora, register } from 'lowrank/tfjs';

const { values } = parseArgs({ options: { epochs: { type: 'string', default: '20' } } });
const epochs = Number(values.epochs);
tf.enableProdMode();
await tf.setBackend('wasm');
register(); // matrix products of every layer run in lowrank's kernels

const K = 64;

/** `count` noisy copies of `classes` random patterns of K numbers. */
function examplesOf(classes, count, seed, patternSeed) {
  const patterns = tf.randomNormal([classes, K], 0, 1, 'float32', patternSeed);
  const labels = tf.randomUniform([count], 0, classes, 'int32', seed);
  const noise = tf.randomNormal([count, K], 0, 2, 'float32', seed + 1);
  return { x: patterns.gather(labels).add(noise), y: tf.oneHot(labels, classes) };
}

const seeded = (seed) => tf.initializers.glorotUniform({ seed });
const dense = (units, activation, seed, name) =>
  tf.layers.dense({ units, activation, name, kernelInitializer: seeded(seed) });
const bodyOf = () => [
  tf.layers.inputLayer({ inputShape: [K] }),
  dense(128, 'relu', 1, 'body_1'),
  dense(32, 'relu', 2, 'body_2'),
];
function compile(model) {
  const [optimizer, loss] = [tf.train.adam(3e-3), 'categoricalCrossentropy'];
  model.compile({ optimizer, loss, metrics: ['accuracy'] });
}
const train = (model, { x, y }) =>
  model.fit(x, y, { epochs, batchSize: 64, shuffle: false, verbose: 0 });
function accuracyOf(model, { x, y }) {
  const [, accuracy] = model.evaluate(x, y, { batchSize: 256 });
  return accuracy.dataSync()[0];
}
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// The network that is there already.
const body = bodyOf();
const pretrained = tf.sequential({ layers: [...body, dense(10, 'softmax', 3, 'old_head')] });
compile(pretrained);
await train(pretrained, examplesOf(10, 1024, 10, 100));
const known = examplesOf(10, 1024, 20, 100);
console.log(`pretrained, ten classes: ${percent(accuracyOf(pretrained, known))}`);

/**
 * Four classes of its new use: each example is the sum of four directions with signs, and its class says whether the first two
 * signs agree, and whether the last two do. No line between classes separates them.
 */
function newExamplesOf(count, seed) {
  const directions = tf.randomNormal([4, K], 0, 1, 'float32', 200);
  const signs = tf.randomUniform([count, 4], 0, 2, 'int32', seed).mul(2).sub(1);
  const noise = tf.randomNormal([count, K], 0, 0.5, 'float32', seed + 1);
  const [a, b, c, d] = signs.unstack(1);
  const labels = a.mul(b).add(1).add(c.mul(d).add(1).div(2)).toInt();
  return { x: signs.toFloat().matMul(directions).add(noise), y: tf.oneHot(labels, 4) };
}
const training = newExamplesOf(512, 30);
const unseen = newExamplesOf(1024, 40);

/** The pretrained body under a new head. Of a layer that is not trainable, neither would its adapter be. */
function withNewHead({ trainable }) {
  const layers = bodyOf();
  const model = tf.sequential({ layers: [...layers, dense(4, 'softmax', 4, 'head')] });
  layers.forEach((layer, i) => {
    layer.setWeights(body[i].getWeights());
    layer.trainable = trainable;
  });
  return model;
}

const plain = withNewHead({ trainable: false });
compile(plain);
await train(plain, training);
console.log(`head alone: ${percent(accuracyOf(plain, unseen))}`);

const options = { targets: ['body_1', 'body_2'], r: 8, loraAlpha: 16, format: 'nf4', seed: 5 };
const model = withNewHead({ trainable: true });
const lora = applyLora(model, options); // freezes the kernels of the body
compile(model);
await train(model, training);
const { baseBytes, denseBytes } = lora.memory();
console.log(`head and LoRA: ${percent(accuracyOf(model, unseen))}`);
console.log(`frozen body: ${baseBytes} bytes instead of ${denseBytes}`);

// What is kept: the adapter as a PEFT folder, and the head.
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'classifier-'));
try {
  await lora.save(path.join(folder, 'adapter'));
  const again = withNewHead({ trainable: true });
  applyLora(again, options).load(path.join(folder, 'adapter'));
  again.getLayer('head').setWeights(model.getLayer('head').getWeights());
  compile(again);
  console.log(`read back: ${percent(accuracyOf(again, unseen))}`);
} finally {
  fs.rmSync(folder, { recursive: true });
}
