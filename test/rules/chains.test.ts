// COLA and PeriodicLoRA against their formulas: what goes into the base, what stays, and the learning rate.
import { expect, it } from 'vitest';
import { stateOf, tinyTrainer } from '../finetune/setup.js';
import { norm, product, worst } from '../starts/setup.js';
import { baseOf, named, tensorOf } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };

const tiny = (
  rule?: string,
  settings: Readonly<Record<string, number>> = {},
  steps = 10,
  warmup = 0,
) =>
  tinyTrainer(
    SIZES,
    { format: 'none' },
    {
      ...{ warmup, weightDecay: 0, steps },
      ...(rule === undefined ? {} : { rules: [{ rule: named(rule), settings }] }),
    },
  );

async function run({ trainer }: ReturnType<typeof tiny>, steps: number): Promise<number[]> {
  const rates: number[] = [];
  for (let i = 0; i < steps; i++) rates.push((await trainer.train()).lr);
  return rates;
}

/** The whole weight of a layer, base and update, in float64. */
function wholeOf(made: ReturnType<typeof tiny>, module: string, N: number, K: number) {
  const [b, a] = ['loraB', 'loraA'].map((part) => tensorOf(made.trainer, `${module}.${part}`)) as [
    Float32Array,
    Float32Array,
  ];
  const update = product(b, a, N, 3, K);
  return baseOf(made.trainer, module).map((value, i) => value + 2 * (update[i] as number));
}

const cosine = (at: number, length: number, lr = 1e-2) =>
  lr * (0.55 + 0.45 * Math.cos((Math.PI * at) / length));

it.each([
  ['cola', { links: 2 }, 5],
  ['periodic-lora', { every: 5, momentum: 0 }, 5],
])('%s begins anew over a base that has the update', async (rule, settings, steps) => {
  const [before, after] = [tiny(rule, settings), tiny(rule, settings)];
  await run(before, steps - 1);
  await run(after, steps);
  // The last step before the merge, without the merge: the schedule of a link is that of a run of its length.
  const plain = tiny(undefined, {}, steps);
  await run(plain, steps);
  for (const { place } of after.trainer.adapters.layers) {
    const { module, N, K } = place;
    const whole = wholeOf(plain, module, N, K);
    expect(worst(wholeOf(after, module, N, K), whole), module).toBeLessThan(
      1e-6 * (1 + norm(whole)),
    );
    expect(norm(tensorOf(after.trainer, `${module}.loraB`)), module).toBe(0);
    const [old, fresh] = [plain, after].map(({ trainer }) => tensorOf(trainer, `${module}.loraA`));
    expect(worst(old as Float32Array, fresh as Float32Array), module).toBeGreaterThan(0.01);
  }
  for (const name of ['m', 'v']) expect(norm(stateOf(after.trainer, name))).toBe(0);
  for (const made of [before, after, plain]) made.dispose();
});

it('a new optimiser corrects its means from the first step on', async () => {
  const made = tiny('cola', { links: 2 });
  await run(made, 5);
  const before = made.trainer.trainer.parameters.map(({ tensor }) => tensor.readSync());
  const [rate = 0] = await run(made, 1);
  // AdamW's first step is lr · sign(g), wherever g is above eps.
  const moved = made.trainer.trainer.parameters.flatMap(({ name, tensor }, i) =>
    name.endsWith('loraB')
      ? Array.from(tensor.readSync(), (value, k) => Math.abs(value - (before[i]?.[k] as number)))
      : [],
  );
  const near = moved.filter((size) => Math.abs(size / rate - 1) < 0.02).length;
  expect(near / moved.length).toBeGreaterThan(0.95);
  made.dispose();
});

it('momentum leaves a share in the adapter, and the model as it was', async () => {
  const settings = { every: 4, momentum: 0.25 };
  const [plain, after] = [tiny(undefined, {}, 4), tiny('periodic-lora', settings)];
  await run(plain, 4);
  await run(after, 4);
  for (const { place } of after.trainer.adapters.layers) {
    const { module, N, K } = place;
    const whole = wholeOf(plain, module, N, K);
    expect(worst(wholeOf(after, module, N, K), whole)).toBeLessThan(1e-6 * (1 + norm(whole)));
    const [old, left] = [plain, after].map(({ trainer }) => tensorOf(trainer, `${module}.loraB`));
    expect(left).toEqual(old?.map((value) => value * 0.25));
  }
  plain.dispose();
  after.dispose();
});

it('each link has the whole schedule, the last one with what is left', async () => {
  const chain = tiny('cola', { links: 3 }, 10, 4);
  // Links of 3, 3 and 4 steps, with warm-ups of ⌈1.2⌉ and ⌈1.6⌉ steps.
  const link = (length: number) =>
    Array.from({ length }, (_, at) =>
      at < 2 ? (1e-2 * (at + 1)) / 2 : cosine(at - 2, length - 2),
    );
  const rates = await run(chain, 10);
  expect(worst(rates, [...link(3), ...link(3), ...link(4)])).toBeLessThan(1e-15);
  expect(chain.trainer.rules?.merges.counts[0]).toBe(2);
  const stages = tiny('periodic-lora', { every: 4, momentum: 0 }, 10);
  const stage = (length: number) => Array.from({ length }, (_, at) => cosine(at, length));
  expect(worst(await run(stages, 10), [...stage(4), ...stage(4), ...stage(2)])).toBeLessThan(1e-15);
  chain.dispose();
  stages.dispose();
});
