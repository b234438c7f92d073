// Starts that see data: examples that are packed into one sequence give what they give in sequences of their own.
import { describe, expect, it } from 'vitest';
import { starts, type Tensor } from '../../lib/index.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import { calibrate, type Observed } from '../../lib/starts/calibration/calibrate.js';
import { fisherOf } from '../../lib/starts/calibration/fisher.js';
import type { CalibrationData } from '../../lib/starts/definition/calibration-data.js';
import { needsData } from '../../lib/starts/starter.js';
import { randomValues } from '../finetune/setup.js';
import { startedTrainer, worst } from './setup.js';

const kLength = 6;
const kSettings: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  rilq: { rounds: 4, truth: 0.5 },
  apiq: { rounds: 2, groupSize: 32 },
};

/** Two batches of four examples; the first token of each is no target, and neither is the one that follows the last. */
function examples(packed: boolean): Pick<CalibrationData, 'batches' | 'T'> {
  const together = packed ? 2 : 1;
  const T = kLength * together;
  const batches = [1, 2].map((seed) => {
    const ids = Int32Array.from(randomValues(4 * kLength, seed), (v) =>
      Math.floor(((v + 1) / 2) * 257),
    );
    const targets = Int32Array.from(ids, (_, i) =>
      i % kLength === kLength - 1 || i % kLength === 0 ? -1 : (ids[i + 1] as number),
    );
    const documents = Int32Array.from(ids, (_, i) => (i % T) - (i % kLength));
    return { ids, targets, ...(packed ? { documents } : {}) };
  });
  return { batches, T };
}

// The Fisher information of lq-lora is one of sequences, so it is compared below.
const withData = Object.values(starts).filter(
  (start) => needsData(start) && start.start !== 'lq-lora',
);

describe.each(withData.map((start) => [start.start, start] as const))('%s', (name, start) => {
  it('does not let packed examples see each other', async () => {
    const found = await Promise.all(
      [true, false].map(async (packed) => {
        const started = await startedTrainer(name, {
          ...{ settings: kSettings[name] ?? {}, seen: examples(packed) },
          ...(start.ownFormat === true ? { format: { format: 'none' } as const } : {}),
        });
        const values = [...started.set.byModule].map(
          ([module, { parameters, buffers }]) =>
            [
              module,
              Object.entries({ ...parameters, ...buffers } as Record<
                string,
                { readSync(): Float32Array }
              >).map(([key, tensor]) => [key, tensor.readSync()] as const),
            ] as const,
        );
        started.dispose();
        return values;
      }),
    );
    const [together, apart] = found as [(typeof found)[0], (typeof found)[0]];
    expect(together.length).toBeGreaterThan(0);
    for (const [i, [module, values]] of together.entries()) {
      for (const [j, [key, value]] of values.entries()) {
        const other = (apart[i] as (typeof together)[0])[1][j]?.[1] as Float32Array;
        const size = Math.max(...other.map(Math.abs), 1e-6);
        expect(worst(value, other) / size, `${module} ${key}`).toBeLessThan(1e-3);
      }
    }
  });
});

it('the Fisher information of a packed sequence is the square of the gradient over its examples', async () => {
  const { decoder, dispose } = await startedTrainer('pissa');
  const one = (packed: boolean): CalibrationData => {
    const { batches, T } = examples(packed);
    const part = 2 * kLength;
    const [first] = batches;
    const batch = Object.fromEntries(
      Object.entries(first as object).map(([name, values]) => [name, values.slice(0, part)]),
    );
    return { batches: [batch as unknown as CalibrationData['batches'][0]], T, dtype: 'f32' };
  };
  const layers = decoder.weights.layers.flatMap(linearsOf);
  const names = layers.map(({ place }) => place.module);
  const found = await fisherOf(decoder, names, one(true));
  const gradients = await calibrate(decoder, layers, 'gradient', one(false));
  for (const [i, module] of names.entries()) {
    const fisher = (found.get(module) as Tensor).readSync();
    const { dw } = gradients[i] as Observed;
    const expected = (dw as Tensor).readSync().map((value) => value * value);
    expect(worst(fisher, expected) / Math.max(...expected), module).toBeLessThan(1e-4);
  }
  for (const tensor of found.values()) tensor.dispose();
  for (const { dw } of gradients) dw?.dispose();
  dispose();
});
