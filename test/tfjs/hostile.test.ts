/** Bad input for the layers: an error of the right kind, and a model that is as it was. */

import type { LayersModel, Tensor as TfTensor } from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import { adapters, memoryUsage, synchronize } from '../../lib/index.js';
import { type ApplyLoraOptions, applyLora, LoraDense, loraDense } from '../../lib/tfjs/index.js';
import { tensorflow } from '../../lib/tfjs/ops/tensorflow.js';
import { useBackend } from '../finetune/setup.js';
import { bitsOf, mlp, randomTensor } from './setup.js';

beforeAll(() => useBackend('cpu'));

const bad = <T>(value: unknown) => value as T;

describe('applyLora', () => {
  it.each([
    ['no options', bad<ApplyLoraOptions>(null), 'ERR_TYPE'],
    ['a rank of zero', { r: 0 }, 'ERR_VALUE'],
    ['half a rank', { r: 1.5 }, 'ERR_VALUE'],
    ['a rank in words', bad<ApplyLoraOptions>({ r: 'eight' }), 'ERR_TYPE'],
    ['alpha that is not a number', { loraAlpha: Number.NaN }, 'ERR_TYPE'],
    ['dropout of everything', { dropout: 1 }, 'ERR_VALUE'],
    ['a format of nobody', bad<ApplyLoraOptions>({ format: 'nf5' }), 'ERR_FORMAT'],
    ['a format that a file does not restore', { format: 'int8' }, 'ERR_UNSUPPORTED'],
    ['a blocksize between two', { format: 'nf4', blocksize: 65 }, 'ERR_FORMAT'],
    ['a seed below zero', { seed: -1 }, 'ERR_VALUE'],
    ['a method of nobody', { adapter: 'lara' }, 'ERR_VALUE'],
    ['a method that is a number', bad<ApplyLoraOptions>({ adapter: 7 }), 'ERR_TYPE'],
    ['a method with frozen tensors', { adapter: adapters.vera }, 'ERR_UNSUPPORTED'],
    ['a setting that the method lacks', { settings: { rank: 3 } }, 'ERR_VALUE'],
    ['targets of a number', bad<ApplyLoraOptions>({ targets: 3 }), 'ERR_TYPE'],
    ['a target of nobody', { targets: ['bad_0', 'bad_9'] }, 'ERR_VALUE'],
    ['targets that are no layer', { targets: /^nothing$/ }, 'ERR_VALUE'],
  ] as [string, ApplyLoraOptions, string][])('rejects %s', (_, options, code) => {
    const model = mlp([16, 8, 4], 'bad_');
    const x = randomTensor([3, 16], 1);
    const before = bitsOf(model.predict(x) as TfTensor);
    const { liveTensors } = memoryUsage();
    expect(() => applyLora(model, options)).toThrow(expect.objectContaining({ code }));
    expect(memoryUsage().liveTensors).toBe(liveTensors);
    expect(model.layers.map((layer) => layer.getClassName())).toEqual(['Dense', 'Dense']);
    expect(bitsOf(model.predict(x) as TfTensor)).toEqual(before);
    applyLora(model, { r: 2 }).dispose();
  });

  it('rejects a model that is none, and one that has an adapter already', () => {
    for (const model of [null, {}, 'model', { layers: 3 }]) {
      expect(() => applyLora(bad<LayersModel>(model), { r: 2 })).toThrow(
        expect.objectContaining({ code: 'ERR_TYPE' }),
      );
    }
    const model = mlp([16, 8], 'twice_');
    const lora = applyLora(model, { r: 2 });
    expect(() => applyLora(model, { r: 2 })).toThrow(/twice_0: it has an adapter already/);
    lora.dispose();
    lora.dispose();
    expect(() => model.predict(randomTensor([3, 16], 1))).toThrow();
    expect(() => lora.memory()).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });

  it('rejects values that are not finite before the first layer changes', async () => {
    const tf = tensorflow();
    const model = mlp([16, 8, 4], 'nan_');
    const [kernel, bias] = model.getWeights().slice(2) as [TfTensor, TfTensor];
    const values = kernel.dataSync().slice();
    values[5] = Number.NaN;
    model.layers[1]?.setWeights([tf.tensor(values, kernel.shape), bias]);
    const { liveTensors } = memoryUsage();
    expect(() => applyLora(model, { r: 2, format: 'nf4' })).toThrow(
      expect.objectContaining({ code: 'ERR_NON_FINITE' }),
    );
    await synchronize();
    expect(memoryUsage().liveTensors).toBe(liveTensors);
    expect(model.layers[0]?.getClassName()).toBe('Dense');
  });

  it('a layer whose call was replaced is skipped', () => {
    const model = mlp([16, 8, 4], 'own_');
    const [first] = model.layers;
    Object.assign(first as object, { call: (x: TfTensor) => x });
    expect(applyLora(model, { r: 2 }).skipped).toEqual([
      { name: 'own_0', reason: 'its call was replaced' },
    ]);
  });
});

describe('LoraDense', () => {
  it('rejects what is no dense layer, and inputs that do not fit', () => {
    const tf = tensorflow();
    expect(() => LoraDense.fromDense(tf.layers.flatten(), { r: 2 })).toThrow(
      expect.objectContaining({ code: 'ERR_TYPE' }),
    );
    expect(() => LoraDense.fromDense(tf.layers.dense({ units: 2 }), { r: 2 })).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE' }),
    );
    expect(() => loraDense(bad(null))).toThrow(expect.objectContaining({ code: 'ERR_TYPE' }));
    expect(() =>
      tf.sequential({ layers: [loraDense({ units: 4, r: -1, inputShape: [8] })] }),
    ).toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
    const layer = loraDense({ units: 4, r: 2, inputShape: [8] });
    const model = tf.sequential({ layers: [layer] });
    expect(() => layer.setWeights([tf.zeros([2, 8])])).toThrow();
    const weights = layer.getWeights();
    weights[2] = tf.zeros([4, 8]);
    expect(() => layer.setWeights(weights)).toThrow();
    expect((model.predict(tf.ones([2, 8])) as TfTensor).shape).toEqual([2, 4]);
    const state = model.getWeights().length;
    expect(state).toBe(4);
  });
});
