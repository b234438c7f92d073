/** The same seed gives the same bits; a resumed run gives the bits of one that never stopped. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import {
  getThreads,
  type RawTensor,
  readSafetensors,
  setThreads,
  writeSafetensors,
} from '../../lib/index.js';
import type { ModelTrainer } from '../../lib/train/model-trainer.js';
import { stateOf, type TinyTrainer, temporaryFolder, tinyTrainer, valuesOf } from './setup.js';

const identity = { model: 'a', rank: 3, lr: 0.01, rslora: false };

const make = () =>
  tinyTrainer(
    {},
    { format: 'nf4', doubleQuant: true },
    { adapter: { dropout: 0.25 }, accumulate: 2, clip: 0.5, steps: 8 },
  );

/** The losses of the next steps. */
async function train(trainer: ModelTrainer, steps: number): Promise<number[]> {
  const losses: number[] = [];
  for (let i = 0; i < steps; i++) losses.push((await trainer.train()).loss);
  return losses;
}

const bits = (values: Float32Array) => new Uint32Array(values.slice().buffer);

describe('resuming', () => {
  it('gives the same bits as an uninterrupted run', async () => {
    const whole = make();
    const losses = await train(whole.trainer, 8);
    expect(new Set(losses).size).toBe(8);

    const first = make();
    const early = await train(first.trainer, 3);
    const file = path.join(temporaryFolder(), 'state');
    saveRunState(file, first.trainer, identity, { train: early, heldOut: [{ step: 0, loss: 5 }] });

    const second = make();
    const history = restoreRunState('test', file, second.trainer, identity);
    expect(history).toEqual({ train: early, heldOut: [{ step: 0, loss: 5 }] });
    const late = await train(second.trainer, 5);
    expect([...early, ...late]).toEqual(losses);
    expect(bits(valuesOf(second.trainer))).toEqual(bits(valuesOf(whole.trainer)));
    expect(bits(stateOf(second.trainer, 'v'))).toEqual(bits(stateOf(whole.trainer, 'v')));
    for (const tiny of [whole, first, second]) tiny.dispose();
  });

  it.each([
    ['one pass', { accumulate: 1 }],
    ['a tree of five passes', { accumulate: 5, batch: 1 }],
    ['dropout in blocks of several layers', { adapter: { dropout: 0.5 } }],
    ['bf16', { dtype: 'bf16' as const }],
  ])('gives the same bits where blocks run twice: %s', async (_, options) => {
    const all = { adapter: { dropout: 0.25 }, ...options };
    const [kept, again] = [false, true].map((recompute) =>
      tinyTrainer({}, { format: 'nf4' }, { ...all, recompute }),
    ) as [TinyTrainer, TinyTrainer];
    expect(await train(again.trainer, 3)).toEqual(await train(kept.trainer, 3));
    expect(bits(valuesOf(again.trainer))).toEqual(bits(valuesOf(kept.trainer)));
    kept.dispose();
    again.dispose();
  });

  it.each(['f32', 'bf16'] as const)(
    'gives the same bits on 1, 2, 3 and 8 threads: %s',
    async (dtype) => {
      const before = getThreads();
      const results: Uint32Array[] = [];
      try {
        for (const threads of [1, 2, 3, 8]) {
          setThreads(threads);
          const tiny = tinyTrainer(
            { hiddenSize: 96, intermediateSize: 224, numKeyValueHeads: 2, headDim: 24 },
            { format: 'nf4' },
            { dtype, T: 40, adapter: { dropout: 0.1 } },
          );
          await train(tiny.trainer, 2);
          results.push(bits(valuesOf(tiny.trainer)));
          tiny.dispose();
        }
      } finally {
        setThreads(before);
      }
      for (const result of results) expect(result).toEqual(results[0]);
    },
  );

  it('another seed gives other numbers', async () => {
    const [a, b] = [make(), tinyTrainer({}, { format: 'nf4' }, { seed: 4 })];
    expect(await train(a.trainer, 1)).not.toEqual(await train(b.trainer, 1));
    a.dispose();
    b.dispose();
  });

  it('refuses the state of another run, a damaged one and other files', async () => {
    const tiny = make();
    const { trainer } = tiny;
    const folder = temporaryFolder();
    const file = path.join(folder, 'state');
    saveRunState(file, trainer, identity, { train: [], heldOut: [] });
    const kept = bits(valuesOf(trainer));
    const code = (at: string, who: Record<string, string | number | boolean> = identity) => {
      try {
        restoreRunState('test', at, trainer, who);
      } catch (error) {
        return `${(error as { code?: string }).code} ${(error as Error).message}`;
      }
      return 'no error';
    };
    expect(code(file, { ...identity, rank: 8 })).toMatch(/^ERR_CHECKPOINT .*rank 3 instead of 8/);
    expect(code(file, { ...identity, model: 'b' })).toMatch(/^ERR_CHECKPOINT .*model/);
    expect(code(path.join(folder, 'nothing'))).toMatch(/^ERR_CHECKPOINT .*nothing there/);
    const whole = fs.readFileSync(file);
    for (const length of [0, 7, 100, whole.length - 1]) {
      fs.writeFileSync(path.join(folder, 'cut'), whole.subarray(0, length));
      expect(code(path.join(folder, 'cut')), `cut to ${length}`).toMatch(/^ERR_FILE /);
    }
    const poisoned = Buffer.from(whole);
    poisoned.fill(0xff, whole.length - 8);
    fs.writeFileSync(path.join(folder, 'poisoned'), poisoned);
    expect(code(path.join(folder, 'poisoned'))).toMatch(/^ERR_CHECKPOINT .*finite/);
    // Readable, of this run, and impossible.
    const { tensors, metadata } = readSafetensors(file);
    const F64 = (...values: number[]): RawTensor => ({
      dtype: 'F64',
      shape: [values.length],
      data: Float64Array.from(values),
    });
    const [name = ''] = [...tensors.keys()].filter((each) => each.startsWith('v/'));
    const { shape = [] } = tensors.get(name) ?? {};
    const below = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => -1);
    const heldOut = (step: number, loss: number): Record<string, RawTensor> => ({
      held_out_step: F64(step),
      held_out_loss: F64(loss),
    });
    for (const [parts, texts, message] of [
      [{}, { step: '1e0' }, /count as step, got "1e0"/],
      [{}, { step: '9' }, /at most at step 8, got step 9/],
      [{}, { version: '3' }, /of version 4, got version "3"/],
      [{ [name]: { dtype: 'F32', shape, data: below } }, {}, /no v below 0, got -1/],
      [
        { [name]: { dtype: 'F32', shape: [below.length], data: below } },
        {},
        /as \[\d+, \d+\], got \[\d+\]/,
      ],
      [{ train_loss: F64(Number.NaN) }, { step: '1' }, /not finite/],
      [heldOut(0, Number.POSITIVE_INFINITY), {}, /not finite/],
      [heldOut(1, 2), {}, /held-out steps from 0 to 0, got 1/],
    ] as [Record<string, RawTensor>, Record<string, string>, RegExp][]) {
      const at = path.join(folder, 'impossible');
      writeSafetensors(
        at,
        { ...Object.fromEntries(tensors), ...parts },
        { ...Object.fromEntries(metadata), ...texts },
      );
      expect(code(at)).toMatch(new RegExp(`^ERR_CHECKPOINT .*${message.source}`));
    }
    const other = path.join(folder, 'other.safetensors');
    fs.writeFileSync(
      other,
      Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{}')]),
    );
    expect(code(other)).toMatch(/^ERR_CHECKPOINT .*another file/);
    expect(bits(valuesOf(trainer))).toEqual(kept);
    tiny.dispose();
  });
});
