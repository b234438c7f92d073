/** The same seed gives the same bits; a resumed run gives the bits of one that never stopped. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { type RawTensor, readSafetensors, writeSafetensors } from '../../lib/index.js';
import { FusedKernels } from '../../lib/train/kernels.js';
import { restoreRunState, saveRunState } from '../../lib/train/run-state.js';
import { temporaryFolder, tinyTrainer, useBackend } from './setup.js';

const kernels = new FusedKernels();
const identity = { model: 'a', rank: 3, lr: 0.01, rslora: false };

const make = () =>
  tinyTrainer(
    {},
    { format: 'nf4', doubleQuant: true },
    { adapter: { dropout: 0.25 }, accumulate: 2, clip: 0.5, steps: 8 },
  );

const bits = (values: Float32Array) => new Uint32Array(values.slice().buffer);

describe('resuming', () => {
  beforeAll(() => useBackend('wasm'));

  it('gives the same bits as an uninterrupted run', async () => {
    const whole = await make();
    const losses = Array.from({ length: 8 }, () => whole.trainer.train(kernels).loss);
    expect(new Set(losses).size).toBe(8);

    const first = await make();
    const early = Array.from({ length: 3 }, () => first.trainer.train(kernels).loss);
    const file = path.join(temporaryFolder(), 'state');
    saveRunState(file, first.trainer, identity, { train: early, heldOut: [{ step: 0, loss: 5 }] });

    const second = await make();
    const history = restoreRunState('test', file, second.trainer, identity);
    expect(history).toEqual({ train: early, heldOut: [{ step: 0, loss: 5 }] });
    const late = Array.from({ length: 5 }, () => second.trainer.train(kernels).loss);
    expect([...early, ...late]).toEqual(losses);
    expect(bits(second.trainer.adapters.values)).toEqual(bits(whole.trainer.adapters.values));
    expect(bits(second.trainer.optimizer.v)).toEqual(bits(whole.trainer.optimizer.v));
    for (const { base } of [whole, first, second]) base.dispose();
  });

  it('another seed gives other numbers', async () => {
    const [a, b] = [await make(), await tinyTrainer({}, { format: 'nf4' }, { seed: 4 })];
    expect(a.trainer.train(kernels).loss).not.toBe(b.trainer.train(kernels).loss);
    a.base.dispose();
    b.base.dispose();
  });

  it('refuses the state of another run, a damaged one and other files', async () => {
    const { trainer, base } = await make();
    const folder = temporaryFolder();
    const file = path.join(folder, 'state');
    saveRunState(file, trainer, identity, { train: [], heldOut: [] });
    const kept = bits(trainer.adapters.values);
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
    const below = Float32Array.from({ length: trainer.adapters.values.length }, () => -1);
    const heldOut = (step: number, loss: number): Record<string, RawTensor> => ({
      held_out_step: F64(step),
      held_out_loss: F64(loss),
    });
    for (const [parts, texts, message] of [
      [{}, { step: '1e0' }, /count as step, got "1e0"/],
      [{}, { updates: '' }, /count as updates, got ""/],
      [{}, { updates: '1' }, /at most 0 updates at step 0, got 1/],
      [{ v: { dtype: 'F32', shape: [below.length], data: below } }, {}, /no v below 0, got -1/],
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
    expect(bits(trainer.adapters.values)).toEqual(kept);
    base.dispose();
  });
});
