/** The losses of packed examples and of preferences, and their gradients, against the float64 model. */

import { afterEach, describe, expect, it } from 'vitest';
import type { DataDocument, DataUnit } from '../../lib/data/documents.js';
import { PackedSet } from '../../lib/data/pack.js';
import { flushSync, memoryUsage } from '../../lib/index.js';
import type { TrainingData } from '../../lib/text/sequences.js';
import { pairLoss } from '../../lib/train/preference-loss.js';
import { oracleLogits } from '../finetune/llama-oracle.js';
import { adaptersOf, oracleWeights, shake } from '../finetune/oracle-trainer.js';
import {
  gradientOf,
  offsetsOf,
  randomValues,
  setValues,
  type TinyTrainer,
  tinyTrainer,
  valuesOf,
} from '../finetune/setup.js';

const open: TinyTrainer[] = [];
afterEach(() => {
  for (const tiny of open.splice(0)) tiny.dispose();
});

const kT = 24;
const place = { file: 'f', line: 1 };

/** A document of random tokens that is learned from a token on. */
function document(length: number, from: number, seed: number): DataDocument {
  const ids = Int32Array.from(randomValues(length, seed), (v) => Math.floor(((v + 1) / 2) * 257));
  const middle = Math.floor((from + length) / 2);
  const learned = [[from, middle] as const, [middle + 1, length] as const];
  return { ids, learned: length - from > 4 ? learned : [[from, length]] };
}
const single = (each: DataDocument, example: number): DataUnit => ({
  ...{ example, place },
  documents: [each],
});
const units = [
  ...[document(9, 4, 1), document(6, 2, 2), document(11, 1, 3), document(4, 3, 4)],
  ...[document(20, 12, 5), document(3, 2, 6), document(5, 1, 7)],
].map(single);
/** Two answers to one prompt. */
const pair = (prompt: number, chosen: number, rejected: number, example: number): DataUnit => {
  const asked = document(prompt, 1, 10 + example).ids;
  const answer = (length: number, seed: number): DataDocument => {
    const { ids } = document(length, 1, seed);
    return {
      ids: Int32Array.from([...asked, ...ids]),
      learned: [[prompt, prompt + length]],
    };
  };
  const documents = [answer(chosen, 20 + example), answer(rejected, 30 + example)];
  return { example, place, documents };
};
const pairs = [pair(3, 2, 3, 0), pair(4, 5, 1, 1), pair(2, 2, 2, 2), pair(3, 4, 4, 3)];

const dataOf = (of: readonly DataUnit[], pack = true): TrainingData => ({
  train: new PackedSet(of, kT, pack),
  heldOut: new PackedSet(of.slice(-2), kT, pack),
  tokens: 0,
});

function make(data: TrainingData, options: Parameters<typeof tinyTrainer>[2] = {}): TinyTrainer {
  const made = tinyTrainer({}, { format: 'nf4' }, { T: kT, data, ...options });
  open.push(made);
  return made;
}

/** −log of the probability of each learned token of a document alone, in float64. */
function oracleLosses(tiny: TinyTrainer, { ids, learned }: DataDocument, adapted = true): number[] {
  const all = Array.from(ids);
  const adapters = adapted ? adaptersOf(tiny) : undefined;
  const logits = oracleLogits(tiny.model.config, oracleWeights(tiny), all.slice(0, -1), adapters);
  return learned.flatMap(([begin, end]) =>
    Array.from({ length: end - begin }, (_, i) => {
      const row = logits[begin + i - 1] as number[];
      const most = Math.max(...row);
      const sum = row.reduce((total, z) => total + Math.exp(z - most), 0);
      return most + Math.log(sum) - (row[all[begin + i] as number] as number);
    }),
  );
}

const add = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);

/** Units of the trainer's next step. */
const unitsOfStep = ({ trainer }: TinyTrainer): DataUnit[] => {
  const set = trainer.data.train as PackedSet;
  const rows = trainer.sequencesOfStep(trainer.step);
  return rows.flatMap((row) => set.unitsOf(row).map((unit) => set.units[unit] as DataUnit));
};

/** Mean loss of the learned tokens. */
const oracleMean = (tiny: TinyTrainer, of: readonly DataUnit[]): number => {
  const losses = of.flatMap(({ documents }) =>
    documents.flatMap((each) => oracleLosses(tiny, each)),
  );
  return add(losses) / losses.length;
};

/** Mean of −log σ(β · ...) over pairs, as the paper has it. */
const oraclePreference = (tiny: TinyTrainer, of: readonly DataUnit[], beta: number): number =>
  add(
    of.map(({ documents }) => {
      const [chosen, rejected] = documents.map((each) => {
        const of = (adapted: boolean) => -add(oracleLosses(tiny, each, adapted));
        return of(true) - of(false);
      }) as [number, number];
      return -Math.log(1 / (1 + Math.exp(-beta * (chosen - rejected))));
    }),
  ) / of.length;

/** One value of each tensor moved both ways: the slope of the float64 loss there. */
function expectGradients(tiny: TinyTrainer, lossAt: () => number): void {
  const { gradient } = gradientOf(tiny.trainer);
  const scale = Math.max(...gradient.map(Math.abs));
  expect(scale).toBeGreaterThan(1e-3);
  const start = valuesOf(tiny.trainer);
  for (const [name, begin] of offsetsOf(tiny.trainer)) {
    const sideAt = (by: number) => {
      const values = start.slice();
      values[begin] = (values[begin] as number) + by;
      setValues(tiny.trainer, values);
      return [values[begin] as number, lossAt()] as const;
    };
    const [[high, above], [low, below]] = [sideAt(1e-3), sideAt(-1e-3)];
    const error = Math.abs((above - below) / (high - low) - (gradient[begin] as number)) / scale;
    expect(error, name).toBeLessThan(1e-4);
  }
  setValues(tiny.trainer, start);
}

describe('packed examples', () => {
  const options = { batch: 1, accumulate: 2, adapter: { targets: ['v_proj', 'down_proj'] } };

  it('have the mean loss of their learned tokens, each document alone, and its gradients', () => {
    const tiny = make(dataOf(units), options);
    expect(tiny.trainer.data.train.count).toBeLessThan(units.length);
    shake(tiny);
    const chosen = unitsOfStep(tiny);
    expect(chosen.length).toBeGreaterThan(3);
    const lossAt = () => oracleMean(tiny, chosen);
    expect(Math.abs(gradientOf(tiny.trainer).loss - lossAt())).toBeLessThan(2e-6);
    expectGradients(tiny, lossAt);
  });

  it('are evaluated so too', async () => {
    const tiny = make(dataOf(units));
    shake(tiny);
    const { trainer } = tiny;
    for (const set of [trainer.data.train, trainer.data.heldOut] as PackedSet[]) {
      const expected = oracleMean(tiny, set.units);
      expect(Math.abs((await trainer.evaluate(set)) - expected)).toBeLessThan(2e-6);
    }
  });

  it('count by sequence in a private step, each by the mean of its learned tokens', async () => {
    const tiny = make(dataOf(units), {
      ...{ batch: 2, accumulate: 1, clip: 0.5, privacy: { noise: 0.5 } },
      adapter: { targets: ['v_proj', 'down_proj'] },
    });
    shake(tiny);
    const { trainer } = tiny;
    const set = trainer.data.train as PackedSet;
    let taken = 0;
    for (let step = 0; step < 4; step++) {
      const means = trainer.sequencesOfStep(step).map((row) =>
        oracleMean(
          tiny,
          set.unitsOf(row).map((unit) => set.units[unit] as DataUnit),
        ),
      );
      taken += means.length;
      const expected = add(means) / Math.max(means.length, 1);
      const { loss } = await trainer.train();
      expect(Math.abs(loss - expected)).toBeLessThan(2e-6);
    }
    expect(taken).toBeGreaterThan(3);
  });

  it('have the loss of documents in rows of their own', async () => {
    const [together, apart] = [true, false].map((pack) => make(dataOf(units, pack))) as [
      TinyTrainer,
      TinyTrainer,
    ];
    for (const tiny of [together, apart]) shake(tiny);
    const losses = ({ trainer }: TinyTrainer) => trainer.evaluate(trainer.data.train);
    const [a, b] = [await losses(together), await losses(apart)];
    expect(Math.abs(a - b)).toBeLessThan(1e-6 * a);
  });

  it.each(['reference', 'cuda-emulated'] as const)('have these losses on %s', async (device) => {
    const losses = await Promise.all(
      (['cpu', device] as const).map(async (where) => {
        const { trainer } = make(dataOf(units), { device: where, adapter: { dropout: 0.2 } });
        const found: number[] = [];
        for (let i = 0; i < 4; i++) found.push((await trainer.train()).loss);
        return found;
      }),
    );
    const [here, there] = losses as [number[], number[]];
    expect(new Set(here).size).toBe(4);
    for (const [i, loss] of here.entries()) {
      expect(Math.abs(loss - (there[i] as number)), `step ${i}`).toBeLessThan(2e-5 * loss);
    }
  });

  it('replay as a graph with the bits of steps without one', async () => {
    const run = async (capture: boolean) => {
      const { trainer } = make(dataOf(units), { device: 'cuda-emulated', capture });
      const found: number[] = [];
      for (let i = 0; i < 6; i++) found.push((await trainer.train()).loss);
      expect(trainer.notCaptured === undefined).toBe(capture);
      return { found, values: valuesOf(trainer) };
    };
    expect(await run(true)).toEqual(await run(false));
  });
});

describe('the loss of a pair', () => {
  it('is −log σ(β · margin), with its slope', () => {
    const cases = [
      [3, 5, 2, 7, 0.1],
      [12, 1, 3, 4, 0.5],
      [0.5, 0.25, 0.75, 2, 2],
      [2000, 1, 1, 2000, 1],
      [1, 2000, 2000, 1, 1],
    ] as const;
    for (const [c, r, rc, rr, beta] of cases) {
      const of = (chosen: number, rejected: number) =>
        pairLoss({ chosen, rejected }, { chosen: rc, rejected: rr }, beta);
      const { loss, slope, margin } = of(c, r);
      const z = beta * (-c + rc - (-r + rr));
      expect(margin).toBeCloseTo(z, 12);
      if (Math.abs(z) < 30) expect(loss).toBeCloseTo(-Math.log(1 / (1 + Math.exp(-z))), 12);
      else expect(loss).toBeCloseTo(Math.max(-z, 0), 9);
      const h = 1e-5;
      expect(slope).toBeCloseTo((of(c + h, r).loss - of(c - h, r).loss) / (2 * h), 5);
      expect(-slope).toBeCloseTo((of(c, r + h).loss - of(c, r - h).loss) / (2 * h), 5);
    }
  });
});

describe('preferences', () => {
  const beta = 0.3;
  const options = {
    ...{ batch: 1, accumulate: 2, dpoBeta: beta },
    adapter: { targets: ['q_proj', 'up_proj'] },
  };

  it('begin at log 2, where policy and reference are the same', async () => {
    const { trainer } = make(dataOf(pairs), options);
    expect((await trainer.prefer(trainer.data.train)).loss).toBeCloseTo(Math.LN2, 12);
    expect(gradientOf(trainer).loss).toBeCloseTo(Math.LN2, 6);
  });

  it('have the loss of the float64 model, and its gradients', () => {
    const tiny = make(dataOf(pairs), options);
    shake(tiny);
    const chosen = unitsOfStep(tiny);
    expect(chosen.length).toBeGreaterThan(1);
    const lossAt = () => oraclePreference(tiny, chosen, beta);
    expect(Math.abs(lossAt() - Math.LN2)).toBeGreaterThan(1e-3);
    expect(Math.abs(gradientOf(tiny.trainer).loss - lossAt())).toBeLessThan(4e-6);
    expectGradients(tiny, lossAt);
  });

  it('are evaluated so too, with the share that is ranked right', async () => {
    const tiny = make(dataOf(pairs), options);
    shake(tiny);
    const { trainer } = tiny;
    const set = trainer.data.train as PackedSet;
    const { loss, accuracy } = await trainer.prefer(set);
    expect(Math.abs(loss - oraclePreference(tiny, set.units, beta))).toBeLessThan(4e-6);
    const right = set.units.filter((unit) => oraclePreference(tiny, [unit], beta) < Math.LN2);
    expect(accuracy).toBe(right.length / set.units.length);
    expect(await trainer.evaluate(set)).toBe(loss);
  });

  it('are learned: the loss falls, and every pair is ranked right', async () => {
    const { trainer } = make(dataOf(pairs), { dpoBeta: beta, lr: 0.02, steps: 40, warmup: 1 });
    for (let i = 0; i < 40; i++) await trainer.train();
    const { loss, accuracy } = await trainer.prefer(trainer.data.train);
    expect(loss).toBeLessThan(0.3);
    expect(accuracy).toBe(1);
  });

  it.each(['reference', 'cuda-emulated'] as const)('have these losses on %s', async (device) => {
    const losses = await Promise.all(
      (['cpu', device] as const).map(async (where) => {
        const { trainer } = make(dataOf(pairs), { ...options, device: where });
        const found: number[] = [];
        for (let i = 0; i < 3; i++) found.push((await trainer.train()).loss);
        return found;
      }),
    );
    const [here, there] = losses as [number[], number[]];
    for (const [i, loss] of here.entries()) {
      expect(Math.abs(loss - (there[i] as number)), `step ${i}`).toBeLessThan(5e-5 * loss);
    }
  });

  it('leave nothing behind', async () => {
    const { trainer } = make(dataOf(pairs), { ...options, recompute: true });
    const live = () => {
      flushSync('cpu');
      return memoryUsage().liveTensors;
    };
    for (let i = 0; i < 3; i++) await trainer.train();
    const before = live();
    for (let i = 0; i < 3; i++) await trainer.train();
    await trainer.evaluate(trainer.data.heldOut);
    expect(live()).toBe(before);
  });
});
