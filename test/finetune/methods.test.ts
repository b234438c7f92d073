/** Every method that the fine-tune takes: a step, a folder; and what layers share is one tensor. */

import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { adapterFromPeft, adapterMethods, readAdapterFolder } from '../../lib/index.js';
import type { FinetuneOptions } from '../../lib/train/finetune.js';
import { requireWritable, writeAdapter } from '../../lib/train/finetune-files.js';
import { FusedKernels } from '../../lib/train/kernels.js';
import { restoreRunState, saveRunState } from '../../lib/train/run-state.js';
import { settingsOf } from '../adapters/settings.js';
import { temporaryFolder, tinyTrainer, useBackend } from './setup.js';

const kernels = new FusedKernels();
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

beforeAll(() => useBackend('cpu'));

const trainable = adapterMethods.filter(({ definition }) => definition.inputs === undefined);

it('each method names the inputs that its calls need beside x', () => {
  for (const { method, definition } of adapterMethods) {
    expect(definition.inputs ?? [], method).toEqual(Object.keys(settingsOf(method).inputs ?? {}));
  }
});

it.each(trainable.map(({ method }) => method))('%s trains a step and is written', async (name) => {
  const { base, trainer } = await make(name, settingsOf(name).settings);
  const folder = path.join(temporaryFolder(), 'out');
  await requireWritable(trainer.adapters);
  const before = trainer.adapters.values.slice();
  expect(trainer.train(kernels).loss).toBeGreaterThan(0);
  expect(trainer.adapters.values).not.toEqual(before);
  await writeAdapter(toFolder(folder), trainer.adapters);
  const sizes = trainer.adapters.slots.map(
    ({ layer }) => [layer.name, { inFeatures: layer.K, outFeatures: layer.N }] as const,
  );
  const read = { ...readAdapterFolder(folder), layers: new Map(sizes) };
  for (const { layer, parameters } of trainer.adapters.slots) {
    const place = { inFeatures: layer.K, outFeatures: layer.N, weight: layer.w };
    const adapter = adapterFromPeft(read, layer.name, place);
    for (const { name, values } of parameters) {
      expect(adapter.parameters[name]?.readSync(), name).toEqual(values.slice());
    }
  }
  trainer.adapters.dispose();
  base.dispose();
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
    const { base, trainer } = await make(method, settings, { accumulate: 2 });
    const { slots, values } = trainer.adapters;
    expect(slots.length).toBe(4);
    const partsOf = (name: string) =>
      slots.map(({ parameters }) => parameters.find((part) => part.name === name));
    for (const name of shared) {
      // Two blocks of query and key.
      const [query, key, ...second] = partsOf(name).map((part) => part?.at_elems);
      expect(second).toEqual([query, key]);
      expect(query === key).toBe(groups === 1);
    }
    const sizeOf = (name: string) => partsOf(name)[0]?.values.length ?? 0;
    const each = slots[0]?.parameters.reduce((sum, part) => sum + part.values.length, 0) ?? 0;
    const common = shared.reduce((sum, name) => sum + sizeOf(name), 0);
    expect(values.length).toBe(4 * (each - common) + groups * common);
    // Away from starts where a gradient is zero.
    for (let step = 0; step < 3; step++) trainer.train(kernels);
    const parts = partsOf(shared[0] as string);
    const size = parts[0]?.values.length ?? 0;

    trainer.rehearse(kernels);
    const at = parts[0]?.at_elems ?? 0;
    const gradient = trainer.lastGradient.slice(at, at + size);
    const slope = gradient.reduce((sum, g) => sum + g * g, 0);
    const start = values.slice();
    const move = 1e-2 / Math.sqrt(slope);
    const lossAt = (by: number) => {
      gradient.forEach((g, i) => {
        values[at + i] = (start[at + i] as number) + by * g;
      });
      return trainer.rehearse(kernels);
    };
    const difference = (lossAt(move) - lossAt(-move)) / (2 * move);
    expect(Math.abs(difference / slope - 1)).toBeLessThan(0.02);
    trainer.adapters.dispose();
    base.dispose();
  });

  it('goes on from a checkpoint with the same bits', async () => {
    const [whole, first, second] = [
      await make(method, settings, { lr: 0.3 }),
      await make(method, settings, { lr: 0.3 }),
      await make(method, settings, { lr: 0.3 }),
    ];
    for (let i = 0; i < 5; i++) whole.trainer.train(kernels);
    const file = path.join(temporaryFolder(), 'state');
    const losses = [first.trainer.train(kernels).loss, first.trainer.train(kernels).loss];
    saveRunState(file, first.trainer, { method }, { train: losses, heldOut: [] });
    restoreRunState('test', file, second.trainer, { method });
    for (let i = 0; i < 3; i++) second.trainer.train(kernels);
    expect(second.trainer.adapters.values).toEqual(whole.trainer.adapters.values);
    for (const { base, trainer } of [whole, first, second]) {
      trainer.adapters.dispose();
      base.dispose();
    }
  });
});

it('chooses the vectors of vblora by the logits as training moves them, as the folder will', async () => {
  const [, , , settings] = sharing[1] as (typeof sharing)[number];
  const { base, trainer } = await make('vblora', { ...settings, logitsStd: 0.02 }, { lr: 0.3 });
  const tables = () =>
    trainer.adapters.slots.map(({ adapter }) => Array.from(adapter.indexes.topA ?? []));
  const before = tables();
  for (let i = 0; i < 4; i++) trainer.train(kernels);
  await trainer.evaluate(kernels, trainer.data.heldOut);
  expect(tables()).not.toEqual(before);
  const folder = path.join(temporaryFolder(), 'out');
  await writeAdapter(toFolder(folder), trainer.adapters);
  const read = readAdapterFolder(folder);
  for (const { layer, adapter } of trainer.adapters.slots) {
    const place = { inFeatures: layer.K, outFeatures: layer.N };
    expect(adapterFromPeft(read, layer.name, place).indexes).toEqual(adapter.indexes);
  }
  trainer.adapters.dispose();
  base.dispose();
});

it('draws the places of unilora for all layers together, with the scales of all their uses', async () => {
  const length = 100;
  const { base, trainer } = await make('unilora', { r: 2, length });
  const adapters = trainer.adapters.slots.map(({ adapter }) => adapter);
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
  trainer.adapters.dispose();
  base.dispose();
});
