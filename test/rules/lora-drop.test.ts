// LoRA-drop: importance by outputs, which layers keep an adapter of their own, and one adapter for the rest.
import { expect, it } from 'vitest';
import { rules, scope, type Tensor } from '../../lib/index.js';
import { randomValues, tinyTrainer } from '../finetune/setup.js';
import { norm, product, turned, worst } from '../starts/setup.js';
import { type MockRun, mockRun } from './mock-run.js';
import { named, tensorOf } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };
const SETTINGS = { sample: 2, threshold: 0.6, batches: 2 };

it('measures ‖s · B · A · x‖², keeps the most important layers, and groups the rest', () => {
  const [R, N, K, ROWS] = [2, 3, 4, 5];
  const modules = ['0.q', '0.v', '1.q', '1.v', '2.q', '2.v'];
  const layers = Object.fromEntries(
    modules.map((name, i) => [
      name,
      {
        loraA: { shape: [R, K], values: randomValues(R * K, i) },
        loraB: { shape: [N, R], values: randomValues(N * R, i + 20) },
      },
    ]),
  );
  const scaling = Object.fromEntries(modules.map((name, i) => [name, 1 + ((i * 5) % 3)]));
  const inputs = (batch: number, i: number) => randomValues(ROWS * K, 100 * batch + i);
  const run: MockRun = mockRun(rules.loraDrop, {
    ...{ layers, steps: 10, scaling, settings: SETTINGS },
    observeInputs: ({ index = 0 }, input) => {
      for (const [i, name] of modules.entries()) input(name, inputs(index, i));
    },
  });
  const sizes = modules.map((name, i) => {
    const [a, b] = ['loraA', 'loraB'].map((part) =>
      run.parameters.get(`${name}.${part}`)?.values(),
    );
    return [0, 1].reduce((sum, batch) => {
      const h = product(inputs(batch, i), turned(a as Float32Array, R, K), ROWS, K, R);
      const y = product(h, turned(b as Float32Array, N, R), ROWS, R, N);
      return sum + ((scaling[name] as number) * norm(y)) ** 2 / ROWS;
    }, 0);
  });
  const whole = sizes.reduce((a, b) => a + b, 0);
  run.step = 2;
  rules.loraDrop.after?.(run as never);
  expect(
    worst(
      run.state.importance as Float64Array,
      sizes.map((own) => own / whole),
    ),
  ).toBeLessThan(1e-6);
  const order = modules
    .map((_, i) => i)
    .sort((x, y) => (sizes[y] as number) - (sizes[x] as number));
  const own: number[] = [];
  for (const i of order) {
    if (own.reduce((sum, k) => sum + (sizes[k] as number) / whole, 0) >= 0.6) break;
    own.push(i);
  }
  expect(own.length).toBeGreaterThan(1);
  expect(own.length).toBeLessThan(5);
  const firstOf = (kind: string) =>
    modules.findIndex((name, i) => name.endsWith(kind) && !own.includes(i));
  const leaders = modules.map((name, i) => 1 + (own.includes(i) ? i : firstOf(name.slice(-1))));
  expect(Array.from(run.state.leader as Float64Array)).toEqual(leaders);
  expect(run.restarts).toBe(1);
});

it('trains one adapter for a group: its gradient is the sum of theirs', async () => {
  const make = (threshold: number) =>
    tinyTrainer(
      { ...SIZES, numHiddenLayers: 3 },
      { format: 'none' },
      {
        ...{ steps: 10, warmup: 0, weightDecay: 0, adapter: { targets: ['q_proj', 'v_proj'] } },
        rules: [{ rule: named('lora-drop'), settings: { ...SETTINGS, threshold } }],
      },
    );
  const made = make(0.4);
  const { trainer } = made;
  for (let i = 0; i < 2; i++) await trainer.train();
  const leader = () => {
    const found = trainer.stored.find(({ name }) => name === 'rules/lora-drop/leader');
    return Array.from(found?.read() as Float64Array, (value) => value - 1);
  };
  const groups = new Map<number, number[]>();
  for (const [i, own] of leader().entries()) groups.set(own, [...(groups.get(own) ?? []), i]);
  const shared = [...groups.values()].filter((members) => members.length > 1);
  expect(shared.length).toBeGreaterThan(0);
  const modules = trainer.adapters.layers.map(({ place }) => place.module);
  const gradients = scope(() => {
    const { gradients: found } = trainer.trainer.rehearse(trainer.passes());
    return new Map(
      trainer.trainer.parameters.map(
        ({ name }, i) => [name, (found[i] as Tensor).readSync()] as const,
      ),
    );
  });
  await trainer.train();
  for (const members of shared) {
    const [first = 0] = members;
    const names = members.map((i) => `${modules[i]}.loraB`);
    const sum = (gradients.get(names[0] as string) as Float32Array).map((_, k) =>
      names.reduce((total, name) => total + (gradients.get(name)?.[k] as number), 0),
    );
    const { m } = trainer.trainer.state.get(`${modules[first]}.loraB`) as { m: Tensor };
    // The optimiser is new: its first mean is a tenth of the gradient.
    const mean = m.readSync().map((value) => 10 * value);
    expect(norm(sum)).toBeGreaterThan(0);
    expect(worst(mean, sum)).toBeLessThan(1e-4 * norm(sum));
    for (const i of members.slice(1)) {
      for (const part of ['loraA', 'loraB']) {
        expect(tensorOf(trainer, `${modules[i]}.${part}`)).toEqual(
          tensorOf(trainer, `${modules[first]}.${part}`),
        );
      }
    }
  }
  made.dispose();
});
