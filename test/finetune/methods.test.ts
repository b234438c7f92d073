/** Every method that the fine-tune takes: a step, a folder; and what layers share is one tensor. */

import path from 'node:path';
import { describe, expect, it } from 'vitest';
import type { FinetuneOptions } from '../../lib/finetune/finetune.js';
import { requireWritable } from '../../lib/finetune/finetune-files.js';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import {
  adapterFromPeft,
  adapterMethods,
  type BaseWeight,
  readAdapterFolder,
  Tensor,
} from '../../lib/index.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import { settingsOf } from '../adapters/settings.js';
import {
  gradientOf,
  offsetsOf,
  setValues,
  temporaryFolder,
  tinyTrainer,
  valuesOf,
  weightsOf,
} from './setup.js';

const square = { hiddenSize: 48, numKeyValueHeads: 4, headDim: 12 };
const targets = ['q_proj', 'k_proj'] as const;

const make = (
  method: string,
  settings: object,
  train: { readonly weightDecay?: number; readonly lr?: number; readonly accumulate?: number } = {},
) =>
  tinyTrainer(square, { format: 'nf4' }, { adapter: { method, targets, ...settings }, ...train });

/** What the writer looks at. */
const toFolder = (out: string) => ({ out, model: 'base', train: { steps: 60 } }) as FinetuneOptions;

const trainable = adapterMethods.filter(({ definition }) => definition.inputs === undefined);

it('each method names the inputs that its calls need beside x', () => {
  for (const { method, definition } of adapterMethods) {
    expect(definition.inputs ?? [], method).toEqual(Object.keys(settingsOf(method).inputs ?? {}));
  }
});

it.each(trainable.map(({ method }) => method))('%s trains a step and is written', async (name) => {
  const tiny = make(name, settingsOf(name).settings);
  const { trainer } = tiny;
  const folder = path.join(temporaryFolder(), 'out');
  await requireWritable(trainer.adapters);
  const before = valuesOf(trainer);
  expect((await trainer.train()).loss).toBeGreaterThan(0);
  expect(valuesOf(trainer)).not.toEqual(before);
  await writeAdapter(toFolder(folder), trainer.adapters);
  const sizes = trainer.adapters.layers.map(
    ({ place: { module, N, K } }) => [module, { inFeatures: K, outFeatures: N }] as const,
  );
  const weights = weightsOf(tiny.decoder);
  const read = { ...readAdapterFolder(folder), layers: new Map(sizes) };
  for (const { place, adapter: trained } of trainer.adapters.layers) {
    const { module, N, K } = place;
    const weight = weights.get(module) as BaseWeight;
    const adapter = adapterFromPeft(read, module, { inFeatures: K, outFeatures: N, weight });
    for (const [name, tensor] of Object.entries(trained.parameters)) {
      expect(adapter.parameters[name]?.readSync(), name).toEqual(tensor.readSync());
    }
  }
  tiny.dispose();
});

/** Method, what layers share, in how many groups, and settings. */
const sharing: [string, string[], number, object][] = [
  ['unilora', ['theta'], 1, { r: 2, length: 50 }],
  ['vblora', ['bank'], 1, { r: 2, vectors: 6, vectorLength: 16, topK: 2, bankBound: 0.5 }],
  ['lotr', ['u', 'v'], 1, { r: 3 }],
  ['tied-lora', ['a', 'b'], 2, { r: 3 }],
  ['kadaptation', ['leftA', 'leftB'], 2, { n: 4, terms: 3 }],
];

describe.each(sharing)('what layers of %s share', (method, shared, groups, settings) => {
  it('is one tensor, trained by the sum of the gradients of its layers', async () => {
    const tiny = make(method, settings, { accumulate: 2 });
    const { trainer } = tiny;
    const { layers, parameterCount } = trainer.adapters;
    expect(layers.length).toBe(4);
    const partsOf = (name: string) =>
      layers.map(({ adapter }) => adapter.parameters[name] as Tensor);
    for (const name of shared) {
      // Two blocks of query and key.
      const [query, key, ...second] = partsOf(name) as [Tensor, Tensor, Tensor, Tensor];
      expect(second.map((own, i) => Tensor.sharesMemory(own, [query, key][i] as Tensor))).toEqual([
        true,
        true,
      ]);
      expect(Tensor.sharesMemory(query, key)).toBe(groups === 1);
    }
    const sizeOf = (name: string) => partsOf(name)[0]?.size ?? 0;
    const each = layers[0]?.adapter.parameterCount ?? 0;
    const common = shared.reduce((sum, name) => sum + sizeOf(name), 0);
    expect(parameterCount).toBe(4 * (each - common) + groups * common);
    // Away from starts where a gradient is zero.
    for (let step = 0; step < 3; step++) await trainer.train();
    const size = sizeOf(shared[0] as string);
    const at = offsetsOf(trainer).get(`${layers[0]?.place.module}.${shared[0]}`) as number;
    const gradient = gradientOf(trainer).gradient.slice(at, at + size);
    const slope = gradient.reduce((sum, g) => sum + g * g, 0);
    const start = valuesOf(trainer);
    const move = 1e-2 / Math.sqrt(slope);
    const lossAt = (by: number) => {
      const values = start.slice();
      gradient.forEach((g, i) => {
        values[at + i] = (start[at + i] as number) + by * g;
      });
      setValues(trainer, values);
      return trainer.rehearse();
    };
    const difference = (lossAt(move) - lossAt(-move)) / (2 * move);
    expect(Math.abs(difference / slope - 1)).toBeLessThan(0.02);
    tiny.dispose();
  });

  it('goes on from a checkpoint with the same bits', async () => {
    const [whole, first, second] = [
      make(method, settings, { lr: 0.3 }),
      make(method, settings, { lr: 0.3 }),
      make(method, settings, { lr: 0.3 }),
    ];
    for (let i = 0; i < 5; i++) await whole.trainer.train();
    const file = path.join(temporaryFolder(), 'state');
    const losses = [(await first.trainer.train()).loss, (await first.trainer.train()).loss];
    saveRunState(file, first.trainer, { method }, { train: losses, heldOut: [] });
    restoreRunState('test', file, second.trainer, { method });
    for (let i = 0; i < 3; i++) await second.trainer.train();
    expect(valuesOf(second.trainer)).toEqual(valuesOf(whole.trainer));
    for (const tiny of [whole, first, second]) tiny.dispose();
  });
});

it('chooses the vectors of vblora by the logits as training moves them, as the folder will', async () => {
  const [, , , settings] = sharing[1] as (typeof sharing)[number];
  const tiny = make('vblora', { ...settings, logitsStd: 0.02 }, { lr: 0.3 });
  const { trainer } = tiny;
  const tables = () =>
    trainer.adapters.layers.map(({ adapter }) => Array.from(adapter.indexes.topA ?? []));
  const before = tables();
  for (let i = 0; i < 4; i++) await trainer.train();
  await trainer.evaluate(trainer.data.heldOut);
  expect(tables()).not.toEqual(before);
  const folder = path.join(temporaryFolder(), 'out');
  await writeAdapter(toFolder(folder), trainer.adapters);
  const read = readAdapterFolder(folder);
  for (const { place, adapter } of trainer.adapters.layers) {
    const size = { inFeatures: place.K, outFeatures: place.N };
    expect(adapterFromPeft(read, place.module, size).indexes).toEqual(adapter.indexes);
  }
  tiny.dispose();
});

it('draws the places of unilora for all layers together, with the scales of all their uses', async () => {
  const length = 100;
  const tiny = make('unilora', { r: 2, length });
  const { trainer } = tiny;
  const adapters = trainer.adapters.layers.map(({ adapter }) => adapter);
  const entries = adapters.flatMap(({ indexes, buffers }) =>
    ['A', 'B'].flatMap((factor) => {
      const scales = buffers[`scales${factor}`]?.readSync() ?? new Float32Array();
      const places = Array.from(indexes[`indexes${factor}`] ?? []);
      return places.map((place, i) => ({ place, scale: scales[i] }));
    }),
  );
  const uses = new Array<number>(length).fill(0);
  for (const { place } of entries) uses[place] = (uses[place] as number) + 1;
  expect(entries.length).toBe(4 * 2 * (48 + 48));
  expect(Math.max(...uses) - Math.min(...uses)).toBe(1);
  for (const { place, scale } of entries) {
    expect(scale).toBe(Math.fround(1 / Math.sqrt(uses[place] as number)));
  }
  tiny.dispose();
});
