/** What a run is said to take, beside what it takes. */
import { describe, expect, it } from 'vitest';
import {
  flushSync,
  memoryUsage,
  openHfModel,
  optimizerList,
  resetPeakMemory,
} from '../../lib/index.js';
import { fittingChange, memoryOfRun, type RunSize } from '../../lib/train/memory.js';
import { temporaryFolder, tinyTrainer } from '../finetune/setup.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

const checkpoint = { hiddenSize: 64, intermediateSize: 192, headDim: 16 } as const;
const [batch, T] = [4, 512];
const size = {
  batch,
  seqLen: T,
  dtype: 'f32',
  recompute: false,
  format: { format: 'nf4' },
  parameters: 1000,
} as const satisfies RunSize;

describe('the memory of a run', () => {
  it.each([
    ['dense, f32', { format: 'none' }, 'f32', false],
    ['nf4, f32', { format: 'nf4' }, 'f32', false],
    ['int4, bf16', { format: 'int4' }, 'bf16', false],
    ['double quantisation, run twice', { format: 'nf4', doubleQuant: true }, 'f32', true],
    ['private, f32', { format: 'nf4' }, 'f32', false, { noise: 1 }],
    ['private, bf16', { format: 'nf4' }, 'bf16', false, { noise: 1 }],
  ] as const)(
    'is what the device counts, with little room: %s',
    async (_, format, dtype, recompute, privacy?: { readonly noise: number }) => {
      const own = privacy === undefined ? {} : { privacy };
      const tiny = tinyTrainer(checkpoint, format, { batch, T, dtype, recompute, ...own });
      const { trainer, decoder, model } = tiny;
      const parameters = trainer.adapters.parameterCount;
      const perExample = privacy !== undefined;
      const sizes = { ...size, format, dtype, recompute, parameters, perExample };
      const planned = memoryOfRun(model, sizes);
      // Private steps take other numbers of sequences: here as many as others.
      if (perExample) trainer.sequencesOfStep = () => [0, 1, 2, 3];
      const { linear_bytes, other_bytes } = decoder.weights.memory;
      expect(planned.base).toBe(linear_bytes + other_bytes);
      await trainer.train();
      flushSync('cpu');
      resetPeakMemory('cpu');
      await trainer.train();
      const { peakBytes } = memoryUsage('cpu');
      expect(peakBytes).toBeLessThan(planned.total);
      // The 64 MiB that may wait for the queue are not all needed by so small a model.
      expect(planned.total - (64 << 20)).toBeLessThan(1.15 * peakBytes);
      tiny.dispose();
    },
  );

  it.each<[string, object, number]>([
    ['adamw', {}, 8],
    ['adam', { amsgrad: true }, 12],
    ['lion', {}, 4],
    ['lora-fa', {}, 4],
    ['lora-plus', {}, 8],
    ['adamw-8bit', { minSize: 0 }, 2 + 8 / 256],
    // Both moments of [64, 64] for 2 · 8 · 64 trained values.
    ['lora-pro-full', {}, (8 * 64 * 64) / (2 * 8 * 64)],
  ])('has the states of the optimiser: %s', (name, settings, bytes) => {
    const folder = temporaryFolder();
    writeTinyCheckpoint(folder, checkpoint);
    const optimizer = optimizerList.find((each) => each.optimizer === name) as never;
    const planned = memoryOfRun(openHfModel(folder), {
      ...size,
      ...{ optimizer, optimizerSettings: settings as Record<string, unknown> },
    });
    expect(planned.optimizer).toBeCloseTo((4 + bytes) * size.parameters, 6);
  });

  it('names the options that make it fit', () => {
    const folder = temporaryFolder();
    writeTinyCheckpoint(folder, checkpoint);
    const model = openHfModel(folder);
    const total = (change: Partial<RunSize>) => memoryOfRun(model, { ...size, ...change }).total;
    const changeAt = (most: number) => fittingChange(model, size, 3, most);
    expect(changeAt(total({ recompute: true }))).toBe('--recompute');
    expect(changeAt(total({ batch: 1 }))).toBe('--batch 1 --accumulate 12');
    expect(changeAt(total({ batch: 1, recompute: true }))).toBe(
      '--recompute --batch 1 --accumulate 12',
    );
    const short = { batch: 1, recompute: true, seqLen: T / 4 };
    expect(changeAt(total(short))).toBe('--recompute --batch 1 --seq-len 128');
    expect(changeAt(1)).toBeUndefined();
  });
});
