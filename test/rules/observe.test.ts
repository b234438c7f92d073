// What rules see of a pass: gradients by weights against those of factors, inputs against calibration, parts of the sequences.
import { expect, it } from 'vitest';
import { defineRule } from '../../lib/index.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import type { RuleRun } from '../../lib/rules/definition/run.js';
import { calibrate } from '../../lib/starts/calibration/calibrate.js';
import { SequenceOrder } from '../../lib/train/sequence-order.js';
import { gradientOf, offsetsOf, setValues, tinyTrainer, valuesOf } from '../finetune/setup.js';
import { norm, product, turned, worst } from '../starts/setup.js';
import { tensorOf } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };

/** A trainer, and what the hooks of its rule get. */
async function watched(accumulate = 1) {
  let seen: RuleRun<object> | undefined;
  const rule = defineRule({
    ...{ rule: 'watch', reference: 'none', defaults: {} },
    before: (run) => {
      seen = run;
    },
  });
  const made = tinyTrainer(
    SIZES,
    { format: 'nf4' },
    { accumulate, rules: [{ rule, settings: {} }] },
  );
  await made.trainer.train();
  return { ...made, run: seen as RuleRun<object> };
}

it.each([1, 3])(
  'gradients by weights give those of the factors (%i passes)',
  async (accumulate) => {
    const { trainer, run, dispose } = await watched(accumulate);
    setValues(
      trainer,
      valuesOf(trainer).map((value, i) => value + 0.01 * Math.sin(i)),
    );
    const found = run.weightGradients();
    const { gradient } = gradientOf(trainer);
    const at = offsetsOf(trainer);
    for (const { place } of trainer.adapters.layers) {
      const { module, N, K } = place;
      const dw = found.get(module) as Float32Array;
      const [a, b] = ['loraA', 'loraB'].map((part) => tensorOf(trainer, `${module}.${part}`)) as [
        Float32Array,
        Float32Array,
      ];
      const expected = {
        loraA: product(turned(b, N, 3), dw, 3, N, K),
        loraB: product(dw, turned(a, 3, K), N, K, 3),
      };
      for (const [part, values] of Object.entries(expected)) {
        const begin = at.get(`${module}.${part}`) as number;
        const own = gradient.slice(begin, begin + values.length);
        const scaled = values.map((value) => 2 * value);
        expect(norm(scaled)).toBeGreaterThan(0);
        expect(worst(own, scaled), `${module}.${part}`).toBeLessThan(1e-6 + 2e-5 * norm(scaled));
      }
    }
    dispose();
  },
);

it('the loss of a part is that of its sequences, and their gradients too', async () => {
  const { trainer, run, dispose } = await watched();
  const pass = { part: 1, parts: 3, index: 2 };
  const loss = run.lossOf(pass);
  const gradients = run.gradientsOf(pass);
  const [first] = trainer.trainer.parameters;
  const name = first?.name as string;
  const parameter = run.parameters.get(name);
  const values = parameter?.values() as Float32Array;
  const wanted = gradients.get(name) as Float32Array;
  const most = wanted.reduce(
    (best, value, i) => (Math.abs(value) > Math.abs(wanted[best] ?? 0) ? i : best),
    0,
  );
  const lossAt = (by: number) => {
    parameter?.write(values.map((value, i) => (i === most ? value + by : value)));
    return run.lossOf(pass);
  };
  const slope = (lossAt(0.02) - lossAt(-0.02)) / 0.04;
  parameter?.write(values);
  expect(run.lossOf(pass)).toBe(loss);
  expect(Math.abs(slope - (wanted[most] as number))).toBeLessThan(1e-3 + 0.05 * Math.abs(slope));
  dispose();
});

it('inputs are those that calibration sees, where adapters add nothing', async () => {
  const { trainer, run, decoder, dispose } = await watched();
  setValues(trainer, valuesOf(trainer).fill(0));
  const pass = { part: 0, parts: 1, index: 1 };
  const sums = new Map<string, Float64Array>();
  run.observeInputs(pass, (module, x) => {
    const K = trainer.adapters.layers.find(({ place }) => place.module === module)?.place.K ?? 0;
    const sum = sums.get(module) ?? new Float64Array(K);
    x.forEach((value, i) => {
      sum[i % K] = (sum[i % K] as number) + value;
    });
    sums.set(module, sum);
  });
  const linears = decoder.weights.layers.flatMap(linearsOf);
  const data = {
    batches: trainer.nextBatches(pass),
    T: trainer.data.train.T,
    dtype: 'f32' as const,
  };
  const expected = await calibrate(decoder, linears, 'inputs', data);
  expect(sums.size).toBe(linears.length);
  for (const [i, { place }] of linears.entries()) {
    const wanted = expected[i]?.inputs?.sum as Float64Array;
    expect(worst(sums.get(place.module) as Float64Array, wanted), place.module).toBeLessThan(1e-4);
  }
  dispose();
});

it('parts share no sequence, cover all, and have epochs of their own', () => {
  const order = new SequenceOrder(23, { batch: 2, accumulate: 1, seed: 3 });
  const epoch = (part: number, width: number, count: number) => {
    const steps = Array.from({ length: Math.ceil(count / 2) }, (_, index) =>
      order.indices(99, 0, { part, parts: 10, width, index }),
    );
    return steps.flat().slice(0, count);
  };
  // 23 sequences: numbers 0 to 2 of each ten occur three times.
  const training = epoch(0, 7, 17);
  const validation = epoch(7, 3, 6);
  expect(new Set(training).size).toBe(17);
  expect(training.every((i) => i < 23 && i % 10 < 7)).toBe(true);
  expect([...validation].sort((a, b) => a - b)).toEqual([7, 8, 9, 17, 18, 19]);
  const plain = (step: number) => order.indices(step, 0);
  expect(plain(3)).toEqual(
    new SequenceOrder(23, { batch: 2, accumulate: 1, seed: 3 }).indices(3, 0),
  );
});
