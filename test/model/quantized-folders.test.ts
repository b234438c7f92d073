// Folders whose layers other programs have quantised: opened, decoded to the peers' bits on every device, trained.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  AdapterSet,
  adapters,
  type BaseWeight,
  Decoder,
  DecoderWeights,
  dequantize,
  openHfModel,
  type QuantizedWeight,
  scope,
  Trainer,
} from '../../lib/index.js';
import { layerLinears } from '../../lib/model/decoder-tensors.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import { DEVICES } from '../conformance/operands.js';
import { caseIds, loadCase } from '../golden/case-file.js';
import { RuleBook } from '../golden/rules.js';
import { source } from '../oracle/inputs.js';
import { exact } from '../oracle.js';

const FOLDERS = join(import.meta.dirname, '../golden/formats/folder');
// The experts of gpt-oss alone: expert-folders.test.ts puts them into a model.
const NAMES = caseIds('formats/folder')
  .map((id) => id.split('/').at(-1) as string)
  .filter((name) => name !== 'gptoss_mxfp4');

/** Two rows of ids below 40, the same in every run. */
function rows() {
  const from = source(7);
  const ids = Int32Array.from({ length: 2 * 8 }, () => from.integer(0, 39));
  return {
    batch: { B: 2, T: 8, ids },
    targets: ids.map((_, i) => ids[(i + 1) % ids.length] ?? 0),
  };
}

describe.each(DEVICES)('%s', (device) => {
  it.each(NAMES)('%s: every weight has the bits of the peer', (name) => {
    const golden = loadCase(`formats/folder/${name}`);
    const model = openHfModel(join(FOLDERS, name));
    expect(model.layouts).toHaveLength(1);
    using weights = DecoderWeights.load(model, { device });
    const places = new Map(
      weights.layers.flatMap(linearsOf).map((each) => [each.place.weight.name, each.w]),
    );
    const book = new RuleBook(golden);
    for (const rule of golden.rules) {
      scope(() => {
        const w = places.get(rule.tensor.slice('out.'.length)) as QuantizedWeight;
        book.apply(rule, dequantize(w, { dtype: 'f32' }).readSync());
      });
    }
    book.finish();
  });

  it.each(NAMES)('%s: six steps lower the loss', async (name) => {
    const model = openHfModel(join(FOLDERS, name));
    using weights = DecoderWeights.load(model, { device });
    const decoder = new Decoder(model.decoder, weights);
    const set = new AdapterSet(
      decoder,
      { method: adapters.lora, settings: { r: 4 }, targets: 'all-linear' },
      1,
    );
    const trainer = new Trainer(set.parameters, { lr: 0.02 });
    const { batch, targets } = rows();
    const losses: number[] = [];
    for (let i = 0; i < 6; i++) {
      const step = trainer.step((tape, { seed }) => {
        const call = { adapters: set.byModule, seed } as const;
        const { features } = decoder.forward(tape, batch, call);
        return decoder.loss(tape, features, targets, { ...call, scale: 1 / targets.length }).loss;
      });
      losses.push((await step.read()).loss);
    }
    expect(losses.at(-1)).toBeLessThan((losses[0] as number) * 0.95);
  });
});

describe('a quantised folder', () => {
  const folder = join(FOLDERS, 'gptq');

  it('gives decoded values by the names of dense weights', () => {
    const model = openHfModel(folder);
    const golden = loadCase('formats/folder/gptq');
    const { weight } = layerLinears(model.places.layers[0] as never)[0] as {
      weight: { name: string };
    };
    exact(weight.name, model.readFloat32(weight.name), golden.numbers(`out.${weight.name}`));
    expect(model.layoutOf(weight.name.replace('.weight', ''))).toBe('gptq');
    expect(model.layoutOf('lm_head')).toBeUndefined();
    expect(() => model.readQuantized('lm_head')).toThrow(/must hold quantised layer "lm_head"/);
  });

  it('keeps its layers whatever format is asked for, and tells of every tensor of the folder', () => {
    const model = openHfModel(folder);
    const read = new Set<string>();
    using weights = DecoderWeights.load(model, {
      format: { format: 'nf4' },
      device: 'cpu',
      onTensor: (name) => read.add(name),
    });
    expect([...read].sort()).toEqual(model.names().sort());
    const formats = weights.layers
      .flatMap(linearsOf)
      .map(({ w }) => (w as BaseWeight & { format: string }).format);
    expect(new Set(formats)).toEqual(new Set(['planar']));
  });
});
