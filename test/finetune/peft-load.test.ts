// What PEFT makes of the folders that the fine-tune writes, by this project's own account of PEFT's loader: see
// test/adapters/peft-load.test.ts. The folders name the targeted layers by the ends of their names.
import path from 'node:path';
import { expect, it } from 'vitest';
import type { FinetuneOptions } from '../../lib/finetune/finetune.js';
import { requireWritable } from '../../lib/finetune/finetune-files.js';
import { adapterMethods, type BaseWeight, dequantize, Tensor } from '../../lib/index.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import {
  type Expectation,
  filesOf,
  matrixOf,
  PEFT,
  psoftOf,
  worst,
} from '../adapters/peft-load.js';
import { settingsOf } from '../adapters/settings.js';
import { loadAsPeft, type PeftModel } from '../oracle/peft/index.js';
import { temporaryFolder, tinyTrainer, weightsOf } from './setup.js';

/** Layers of [48, 48], [24, 48] and [48, 96]. */
const sizes = { hiddenSize: 48, intermediateSize: 96, numKeyValueHeads: 2, headDim: 12 };
const targets = ['q_proj', 'k_proj', 'down_proj'] as const;

/** What all layers share has to have one shape, and a divisor of both sizes for its length. */
const settings: Readonly<Record<string, object>> = {
  unilora: { r: 3, length: 50 },
  vblora: { r: 2, vectors: 6, vectorLength: 8, topK: 2 },
};

const methods = adapterMethods
  .filter(({ method, definition }) => method in PEFT && definition.inputs === undefined)
  .map(({ method }) => method);

it.each(methods)(
  'PEFT computes what --adapter %s has trained, or a note says what else',
  async (name) => {
    const adapter = { method: name, targets, ...(settings[name] ?? settingsOf(name).settings) };
    const tiny = tinyTrainer(sizes, { format: 'nf4' }, { adapter, lr: 0.05 });
    const { trainer, decoder } = tiny;
    const row = PEFT[name] as Expectation;
    const notes = await requireWritable(trainer.adapters);
    expect(notes.length > 0).toBe(row.caveat !== undefined || row.embedding === true);
    for (let step = 0; step < 3; step++) await trainer.train();
    const out = path.join(temporaryFolder(), 'out');
    const options = { out, model: 'base', train: { steps: 3 } } as FinetuneOptions;
    await writeAdapter(options, trainer.adapters);
    // Tables that follow from the values.
    trainer.adapters.refresh();
    const files = filesOf(out);
    const { layers } = trainer.adapters;
    const weights = weightsOf(decoder);
    const weightOf = (module: string) => weights.get(module) as BaseWeight;
    const model: PeftModel = new Map(
      layers.map(({ place: { module } }) => {
        const w = weightOf(module);
        const dense = Tensor.is(w) ? w : dequantize(w, { dtype: 'f32' });
        return [module, { weight: matrixOf(dense) }];
      }),
    );
    if (row.refuses !== undefined || row.embedding === true) {
      expect(() => loadAsPeft(files, model)).toThrow(row.refuses ?? /size mismatch/);
      return;
    }
    const loaded = loadAsPeft(files, model, { PSOFT: psoftOf(files) });
    expect(loaded.ignored.filter((key) => row.ignored?.test(key) !== true)).toEqual([]);
    for (const { place, adapter: one } of layers) {
      const { module, K } = place;
      const x = Tensor.randn([3, K], { seed: 2, device: 'cpu' });
      const { y } = one.forward(x, weightOf(module), { training: false });
      const expected = loaded.forward(module, matrixOf(x));
      expect(worst(y.readSync(), expected), module).toBeLessThan(1e-5);
    }
    tiny.dispose();
  },
);
