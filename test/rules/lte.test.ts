// LTE against heads that are trained apart: what each sees, what is merged, and what the folder has.
import { expect, it } from 'vitest';
import { defineRule } from '../../lib/index.js';
import { tinyTrainer } from '../finetune/setup.js';
import { norm, product, worst } from '../starts/setup.js';
import { baseOf, named, tensorOf } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };

const tiny = (rules: Parameters<typeof tinyTrainer>[2] & object, steps: number) =>
  tinyTrainer(SIZES, { format: 'none' }, { warmup: 0, weightDecay: 0.1, steps, ...rules });

/** One head alone: its part of the sequences, from initial values that are given. */
const alone = (part: number, values: ReadonlyMap<string, Float32Array>, parts = 2) =>
  defineRule({
    rule: 'alone',
    reference: 'none',
    defaults: {},
    claims: ['data'],
    data: ({ step }) => ({ part, parts, index: step }),
    prepare: ({ parameters }) => {
      for (const [name, parameter] of parameters) parameter.write(values.get(name) as Float32Array);
    },
  });

it('trains each head as if it were alone, and merges their mean', async () => {
  const lte = { rules: [{ rule: named('lte'), settings: { heads: 2, every: 2 } }] };
  const made = tiny(lte, 8);
  const { trainer } = made;
  const stateOf = (name: string) => {
    const found = trainer.stored.find((own) => own.name === `rules/lte/${name}`);
    return Float64Array.from(found?.read() as Float64Array);
  };
  const names = trainer.trainer.parameters.map(({ name }) => name);
  await trainer.train();
  const initial = [0, 1].map(
    (head) =>
      new Map(names.map((name) => [name, Float32Array.from(stateOf(`head/${head}/${name}`))])),
  ) as [Map<string, Float32Array>, Map<string, Float32Array>];
  for (let i = 1; i < 4; i++) await trainer.train();
  // The first round: no base has changed yet, and the schedule is that of a run of half the steps.
  for (const [head, values] of initial.entries()) {
    const twin = tiny({ rules: [{ rule: alone(head, values), settings: {} }] }, 4);
    for (let i = 0; i < 2; i++) await twin.trainer.train();
    for (const name of names) {
      expect(Float32Array.from(stateOf(`head/${head}/${name}`)), name).toEqual(
        tensorOf(twin.trainer, name),
      );
      const m = twin.trainer.trainer.state.get(name)?.m?.readSync() as Float32Array;
      expect(Float32Array.from(stateOf(`m/${head}/${name}`)), name).toEqual(m);
    }
    twin.dispose();
  }
  const deltaOf = (kind: string, head: number, module: string, N: number, K: number) =>
    product(
      stateOf(`${kind}/${head}/${module}.loraB`),
      stateOf(`${kind}/${head}/${module}.loraA`),
      N,
      3,
      K,
    ).map((value) => 2 * value);
  const places = trainer.adapters.layers.map(({ place }) => place);
  const original = tiny({}, 4);
  const mean = (kind: string, module: string, N: number, K: number) => {
    const [one, two] = [0, 1].map((head) => deltaOf(kind, head, module, N, K)) as [
      Float64Array,
      Float64Array,
    ];
    return baseOf(original.trainer, module).map(
      (value, i) => value + ((one[i] as number) + (two[i] as number)) / 2,
    );
  };
  // The second round: head 0 begins at the mean.
  await trainer.train();
  for (const { module, N, K } of places) {
    const own = deltaOf('begin', 0, module, N, K);
    const expected = mean('begin', module, N, K).map((value, i) => value - (own[i] as number));
    const error = worst(baseOf(trainer, module), expected);
    expect(error, module).toBeLessThan(1e-6 * (1 + norm(expected)));
  }
  for (let i = 5; i < 8; i++) await trainer.train();
  trainer.finish();
  for (const { module, N, K } of places) {
    const expected = mean('head', module, N, K);
    const error = worst(baseOf(trainer, module), expected);
    expect(error, module).toBeLessThan(1e-6 * (1 + norm(expected)));
    expect(norm(tensorOf(trainer, `${module}.loraB`))).toBe(0);
    expect(trainer.rules?.merges.factors.get(module)?.length).toBe(2);
  }
  original.dispose();
  made.dispose();
});

it('heads see sequences of their own', () => {
  const made = tiny({ rules: [{ rule: named('lte'), settings: { heads: 2, every: 2 } }] }, 8);
  const { trainer } = made;
  const steps = Array.from({ length: 8 }, (_, step) => trainer.sequencesOfStep(step));
  for (const [step, sequences] of steps.entries()) {
    const head = Math.floor(step / 2) % 2;
    expect(
      sequences.map((i) => i % 2),
      `step ${step}`,
    ).toEqual(sequences.map(() => head));
  }
  made.dispose();
});

it('with one head is a plain run, rounds and optimiser included', async () => {
  const made = tiny({ rules: [{ rule: named('lte'), settings: { heads: 1, every: 2 } }] }, 6);
  const { trainer } = made;
  const names = trainer.trainer.parameters.map(({ name }) => name);
  await trainer.train();
  const initial = new Map(
    names.map((name) => {
      const found = trainer.stored.find((own) => own.name === `rules/lte/begin/0/${name}`);
      return [name, Float32Array.from(found?.read() as Float64Array)];
    }),
  );
  const twin = tiny({ rules: [{ rule: alone(0, initial, 1), settings: {} }] }, 6);
  for (let i = 1; i < 6; i++) await trainer.train();
  for (let i = 0; i < 6; i++) await twin.trainer.train();
  for (const name of names)
    expect(tensorOf(trainer, name), name).toEqual(tensorOf(twin.trainer, name));
  twin.dispose();
  made.dispose();
});
