/** Dense layers with adapters in models of tf.layers, against the same in ops of TensorFlow.js. */

import type { io, LayersModel, Scalar, Tensor as TfTensor } from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import { readAdapterFolder } from '../../lib/index.js';
import { applyLora, LoraDense, loraDense } from '../../lib/tfjs/index.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { backends, temporaryFolder, useBackend } from '../finetune/setup.js';
import {
  bitsOf,
  counters,
  expectClose,
  mlp,
  plainForward,
  plainLayers,
  randomTensor,
} from './setup.js';

const widths = [48, 64, 64, 8];
const M = 32;
const config = { r: 4, loraAlpha: 8, seed: 3 };
const compile = (model: LayersModel) =>
  model.compile({ optimizer: tensorflow().train.adam(1e-3), loss: 'meanSquaredError' });

/** Saves and loads through the artifacts that every handler gets. */
async function reload(model: LayersModel): Promise<LayersModel> {
  const tf = tensorflow();
  let saved: io.ModelArtifacts | undefined;
  await model.save(
    tf.io.withSaveHandler(async (artifacts) => {
      saved = artifacts;
      return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } };
    }),
  );
  const text = JSON.stringify(saved?.modelTopology);
  const artifacts = { ...(saved as io.ModelArtifacts), modelTopology: JSON.parse(text) };
  return tf.loadLayersModel(tf.io.fromMemory(artifacts));
}

describe.each(backends)('on the %s backend', (backend) => {
  beforeAll(() => useBackend(backend));

  it.each(['dense', 'nf4'] as const)(
    '50 steps have the losses of the same model in plain ops: kernel %s',
    async (kind) => {
      const tf = tensorflow();
      const model = mlp(widths, `steps_${kind}_`);
      const lora = applyLora(model, { ...config, ...(kind === 'nf4' ? { format: kind } : {}) });
      compile(model);
      const plain = plainLayers(model);
      const optimizer = tf.train.adam(1e-3);
      const trained = plain.flatMap(({ loraA, loraB }) => [loraA, loraB]);
      const [x, y] = [randomTensor([M, 48], 1), randomTensor([M, 8], 2)];
      for (let step = 0; step < 50; step++) {
        const ours = (await model.trainOnBatch(x, y)) as number;
        const loss = optimizer.minimize(
          () => tf.losses.meanSquaredError(y, plainForward(plain, x, 2)) as Scalar,
          true,
          trained,
        ) as Scalar;
        const theirs = loss.dataSync()[0] as number;
        expect(Math.abs(ours - theirs) / theirs, `step ${step}`).toBeLessThan(1e-6);
      }
      const values = [...lora.parameters.values()];
      expect(values.map(({ originalName }) => originalName)).toEqual(
        [0, 1, 2].flatMap((i) => [`steps_${kind}_${i}/lora_a`, `steps_${kind}_${i}/lora_b`]),
      );
      trained.forEach((variable, i) => {
        const own = values[i]?.read().dataSync() as Float32Array;
        expectClose(own, variable.dataSync(), 1e-5, `weight ${i}`);
      });
      expect(model.trainableWeights.length).toBe(6);
      lora.dispose();
    },
  );

  it.each([undefined, 'nf4', 'fp4', 'int4'] as const)(
    'a saved model predicts the same bits when it is loaded: format %s',
    async (format) => {
      const model = mlp([64, 32, 8], `saved_${format}_`);
      const lora = applyLora(model, { ...config, ...(format === undefined ? {} : { format }) });
      compile(model);
      const x = randomTensor([M, 64], 1);
      await model.trainOnBatch(x, randomTensor([M, 8], 2));
      const loaded = await reload(model);
      expect(loaded.layers.map((layer) => layer.getClassName())).toEqual([
        'LoraDense',
        'LoraDense',
      ]);
      expect(loaded.layers[1]?.getConfig()).toMatchObject({ adapter: 'lora', settings: { r: 4 } });
      expect(bitsOf(loaded.predict(x) as TfTensor)).toEqual(bitsOf(model.predict(x) as TfTensor));
      // It goes on training, to the same weights.
      compile(loaded);
      compile(model);
      for (const each of [model, loaded]) await each.trainOnBatch(x, randomTensor([M, 8], 2));
      expect(bitsOf(loaded.predict(x) as TfTensor)).toEqual(bitsOf(model.predict(x) as TfTensor));
      lora.merge();
      const merged = await reload(model);
      expect(bitsOf(merged.predict(x) as TfTensor)).toEqual(bitsOf(model.predict(x) as TfTensor));
      loaded.dispose();
      merged.dispose();
      lora.dispose();
    },
  );

  it('a PEFT folder goes there and back', async () => {
    const tf = tensorflow();
    const folder = temporaryFolder();
    const [first, second] = [mlp(widths, 'peft_'), mlp(widths, 'peft_')];
    const [from, to] = [
      applyLora(first, { ...config, dropout: 0.25 }),
      applyLora(second, { r: 4, loraAlpha: 1, seed: 9 }),
    ];
    const x = randomTensor([M, 48], 1);
    compile(first);
    await first.trainOnBatch(x, randomTensor([M, 8], 2));
    expect(await from.save(`${folder}/adapter`)).toEqual([]);
    const { config: saved, tensors } = readAdapterFolder(`${folder}/adapter`);
    expect(saved).toMatchObject({ peft_type: 'LORA', r: 4, lora_alpha: 8, lora_dropout: 0.25 });
    expect(saved.target_modules).toEqual(['peft_0', 'peft_1', 'peft_2']);
    const key = 'base_model.model.peft_1.lora_A.weight';
    expect(tensors.get(key)?.shape).toEqual([4, 64]);
    to.load(`${folder}/adapter`);
    expect(bitsOf(second.predict(x) as TfTensor)).toEqual(bitsOf(first.predict(x) as TfTensor));
    // The scaling of the folder is saved with the model too.
    expect(bitsOf((await reload(second)).predict(x) as TfTensor)).toEqual(
      bitsOf(first.predict(x) as TfTensor),
    );
    // What does not fit leaves the adapters as they were.
    const other = applyLora(mlp(widths, 'peft_'), { r: 5, loraAlpha: 8 });
    const third = applyLora(mlp([48, 8], 'peft_'), config);
    const before = [...other.parameters.values()].map((variable) => bitsOf(variable.read()));
    expect(() => other.load(`${folder}/adapter`)).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE' }),
    );
    expect(() => third.load(`${folder}/adapter`)).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE' }),
    );
    expect(() => third.load(`${folder}/nothing`)).toThrow(
      expect.objectContaining({ code: 'ERR_FILE_NOT_FOUND' }),
    );
    const after = [...other.parameters.values()].map((variable) => bitsOf(variable.read()));
    expect(after).toEqual(before);
    for (const each of [from, to, other, third]) each.dispose();
    tf.disposeVariables();
  });

  it('NF4 takes a seventh of the memory, and TensorFlow.js keeps nothing of the kernel', () => {
    const tf = tensorflow();
    const model = mlp([512, 512, 64], 'memory_');
    const { numBytes } = tf.memory();
    const lora = applyLora(model, { ...config, format: 'nf4' });
    const { baseBytes, denseBytes, adapterBytes, layers } = lora.memory();
    expect(denseBytes).toBe(4 * (512 * 512 + 512 * 64));
    expect(baseBytes / denseBytes).toBeLessThanOrEqual(0.15);
    expect(adapterBytes).toBe(4 * 4 * (512 + 512 + 512 + 64));
    expect(layers).toBe(2);
    expect(tf.memory().numBytes - numBytes).toBe(adapterBytes - denseBytes);
    lora.dispose();
  });

  it('merges and unmerges, and gives the layers back', async () => {
    const tf = tensorflow();
    const model = mlp(widths, 'merge_');
    const x = randomTensor([M, 48], 1);
    const untouched = bitsOf(model.predict(x) as TfTensor);
    const weights = model.getWeights().map(bitsOf);
    const start = counters();
    const lora = applyLora(model, config);
    compile(model);
    await model.trainOnBatch(x, randomTensor([M, 8], 2));
    const apart = bitsOf(model.predict(x) as TfTensor);
    lora.merge();
    const together = model.predict(x) as TfTensor;
    expectClose(together.dataSync(), new Float32Array(apart.buffer), 1e-5, 'merged');
    await expect(model.trainOnBatch(x, randomTensor([M, 8], 2))).rejects.toMatchObject({
      code: 'ERR_VALUE',
    });
    lora.unmerge();
    expect(bitsOf(model.predict(x) as TfTensor)).toEqual(apart);
    lora.remove();
    expect(model.layers.every((layer) => layer.getClassName() === 'Dense')).toBe(true);
    expect(model.trainableWeights.length).toBe(6);
    expect(model.getWeights().map(bitsOf)).toEqual(weights);
    expect(bitsOf(model.predict(x) as TfTensor)).toEqual(untouched);
    expect(counters().ours).toBe(start.ours);
    expect(() => lora.merge()).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    // And once more: no name is left over.
    applyLora(model, config).dispose();
    tf.disposeVariables();
  });

  it('finds dense layers in wrappers and models, and says why it skips others', async () => {
    const tf = tensorflow();
    const inner = mlp([8, 6, 8], 'inner_', [5]);
    const input = tf.input({ shape: [5, 8] });
    const dense = tf.layers.dense({ units: 8, activation: 'tanh', name: 'timed' });
    const timed = tf.layers.timeDistributed({ layer: dense, name: 'wrapper' });
    const twice = tf.layers.bidirectional({
      layer: tf.layers.simpleRNN({ units: 4, returnSequences: true }) as never,
      mergeMode: 'concat',
      name: 'twice',
    });
    const flat = tf.layers.flatten();
    const head = tf.layers.dense({ units: 2, name: 'head' });
    let y = timed.apply(input) as ReturnType<typeof tf.input>;
    y = twice.apply(y) as typeof y;
    y = inner.apply(y) as typeof y;
    y = head.apply(flat.apply(y)) as typeof y;
    const model = tf.model({ inputs: input, outputs: y });
    const x = randomTensor([3, 5, 8], 1);
    const before = (model.predict(x) as TfTensor).dataSync().slice();
    const lora = applyLora(model, { ...config, targets: /wrapper|inner/ });
    expect(lora.layers).toEqual(['wrapper', `${inner.name}.inner_0`, `${inner.name}.inner_1`]);
    expect(lora.skipped).toEqual([
      { name: 'twice', reason: expect.stringContaining('recurrent') },
      { name: 'head', reason: 'not a target' },
    ]);
    // loraB starts at zero.
    expectClose((model.predict(x) as TfTensor).dataSync(), before, 1e-6, 'at the start');
    compile(model);
    await model.trainOnBatch(x, randomTensor([3, 2], 2));
    const loaded = await reload(model);
    expect(bitsOf(loaded.predict(x) as TfTensor)).toEqual(bitsOf(model.predict(x) as TfTensor));
    lora.dispose();
  });

  it('DoRA predicts what its formula says, and is saved with the model', async () => {
    const model = mlp([24, 16], `dora_`);
    applyLora(model, { r: 2, loraAlpha: 4, adapter: 'dora', seed: 2 });
    compile(model);
    const [x, y] = [randomTensor([M, 24], 1), randomTensor([M, 16], 2)];
    for (let step = 0; step < 3; step++) await model.trainOnBatch(x, y);
    const [a, b, magnitude, kernel, bias] = model
      .getWeights()
      .map((weight) => weight.dataSync()) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const xs = x.dataSync();
    const expected = new Float64Array(M * 16);
    for (let n = 0; n < 16; n++) {
      const row = Array.from({ length: 24 }, (_, k) => {
        let sum = kernel[k * 16 + n] as number;
        for (let i = 0; i < 2; i++) sum += 2 * (b[n * 2 + i] as number) * (a[i * 24 + k] as number);
        return sum;
      });
      const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0));
      for (let m = 0; m < M; m++) {
        const dot = row.reduce((sum, value, k) => sum + value * (xs[m * 24 + k] as number), 0);
        expected[m * 16 + n] = ((magnitude[n] as number) / norm) * dot + (bias[n] as number);
      }
    }
    expectClose((model.predict(x) as TfTensor).dataSync(), expected, 2e-6, 'DoRA');
    const loaded = await reload(model);
    expect(bitsOf(loaded.predict(x) as TfTensor)).toEqual(bitsOf(model.predict(x) as TfTensor));
  });

  it('a layer of its own: from settings, and from a dense layer', async () => {
    const tf = tensorflow();
    const layer = loraDense({ units: 8, inputShape: [24], name: 'own', r: 3, format: 'nf4' });
    const model = tf.sequential({ layers: [layer] });
    expect(layer.weights.map(({ originalName, shape }) => [originalName, shape])).toEqual([
      ['own/lora_a', [3, 24]],
      ['own/lora_b', [8, 3]],
      ['own/kernel', [24, 8]],
      ['own/bias', [8]],
    ]);
    expect(LoraDense.is(layer)).toBe(true);
    const x = randomTensor([M, 24], 1);
    const [, , kernel] = layer.getWeights() as [TfTensor, TfTensor, TfTensor];
    const expected = tf.matMul(x, kernel).dataSync();
    expectClose((model.predict(x) as TfTensor).dataSync(), expected, 1e-6, 'at the start');
    const other = mlp([24, 8], 'turned_');
    const same = LoraDense.fromDense(other.layers[0] as typeof layer, { r: 3 });
    expect(same).toBe(other.layers[0]);
    expect(same.getClassName()).toBe('LoraDense');
    for (const each of [model, other]) each.dispose();
  });

  it('dropout drops while training only, differently in every step', async () => {
    const tf = tensorflow();
    const model = mlp([24, 8], 'drop_');
    const lora = applyLora(model, { r: 2, loraAlpha: 2, dropout: 0.5, seed: 1 });
    const [b] = [...lora.parameters.values()].slice(1);
    b?.write(tf.ones([8, 2]));
    const x = randomTensor([M, 24], 1);
    const run = (training: boolean) =>
      bitsOf(tf.tidy(() => model.layers[0]?.apply(x, { training }) as TfTensor));
    expect(run(false)).toEqual(run(false));
    const [first, second] = [run(true), run(true)];
    expect(first).not.toEqual(second);
    expect(first).not.toEqual(run(false));
    lora.dispose();
  });

  it('many steps leave nothing behind', async () => {
    const tf = tensorflow();
    const model = mlp([16, 16, 4], 'leak_');
    const lora = applyLora(model, { ...config, format: 'nf4' });
    compile(model);
    const [x, y] = [randomTensor([8, 16], 1), randomTensor([8, 4], 2)];
    await model.trainOnBatch(x, y);
    const before = counters();
    for (let step = 0; step < 200; step++) {
      await model.trainOnBatch(x, y);
      tf.dispose(model.predict(x));
      if (step % 40 === 0) tf.tidy(() => void model.getWeights());
    }
    expect(counters()).toEqual(before);
    lora.dispose();
  });
});
