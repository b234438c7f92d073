// Rules that stop parameters: AFLoRA's score and schedule, DyLoRA's single rank, GS-LoRA's groups.
import { describe, expect, it } from 'vitest';
import { rules } from '../../lib/index.js';
import type { ModelTrainer } from '../../lib/train/model-trainer.js';
import { randomValues, tinyTrainer } from '../finetune/setup.js';
import { norm, worst } from '../starts/setup.js';
import { mockRun } from './mock-run.js';
import { named, tensorOf } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };

describe('aflora', () => {
  it('stops the factors with the smallest score, on a cubic schedule, and never its vectors', () => {
    const names = ['one', 'two', 'three'];
    const tensor = (shape: readonly number[], seed: number) => ({
      shape,
      values: randomValues(
        shape.reduce((a, b) => a * b, 1),
        seed,
      ),
    });
    const layers = Object.fromEntries(
      names.map((name, i) => [
        name,
        {
          loraA: tensor([2, 5], i),
          loraB: tensor([4, 2], i + 10),
          d: tensor([2], i + 20),
          b: tensor([4], i + 30),
        },
      ]),
    );
    const settings = { initial: 2, final: 2, beta1: 0.7, beta2: 0.9 };
    const run = mockRun(rules.aflora, { layers, steps: 10, settings });
    const factors = names.flatMap((name) => [`${name}.loraA`, `${name}.loraB`]);
    const scores = new Map<string, { s: number[]; u: number[] }>();
    const stopped: string[] = [];
    const counts: number[] = [];
    for (let step = 1; step <= 10; step++) {
      run.step = step;
      const moving = factors.filter((name) => !stopped.includes(name));
      for (const [i, [name, parameter]] of [...run.parameters].entries()) {
        const scale = 0.1 + ((i * 7) % 5);
        parameter.gradient = randomValues(parameter.values().length, 100 * step + i).map(
          (value) => value * scale,
        );
        if (stopped.includes(name)) parameter.gradient = undefined;
      }
      for (const name of moving) {
        const g = Array.from(run.parameters.get(name)?.gradient ?? []);
        const { s, u } = scores.get(name) ?? { s: g.map(() => 0), u: g.map(() => 0) };
        const nextS = s.map((value, i) => 0.7 * value + 0.3 * Math.abs(g[i] as number));
        const nextU = u.map(
          (value, i) =>
            0.9 * value + 0.1 * Math.abs(Math.abs(g[i] as number) - (nextS[i] as number)),
        );
        scores.set(name, { s: nextS, u: nextU });
      }
      rules.aflora.after?.(run as never);
      const t = Math.min(1, Math.max(0, (step - 2) / 6));
      const due = Math.floor(6 * (1 - (1 - t) ** 3));
      const score = (name: string) => {
        const { s, u } = scores.get(name) as { s: number[]; u: number[] };
        return s.reduce((sum, value, i) => sum + value * (u[i] as number), 0) / s.length;
      };
      stopped.push(
        ...moving.sort((a, b) => score(a) - score(b)).slice(0, Math.max(0, due - stopped.length)),
      );
      counts.push(stopped.length);
      const still = factors.filter((name) => rules.aflora.trains?.(run as never, name) === false);
      expect(new Set(still), `step ${step}`).toEqual(new Set(stopped));
      for (const name of names) {
        expect(rules.aflora.trains?.(run as never, `${name}.d`)).toBe(true);
      }
    }
    expect(counts).toEqual([0, 0, 2, 4, 5, 5, 5, 6, 6, 6]);
  });

  it('a factor that has stopped keeps its bits in a run', async () => {
    const { trainer, dispose } = tinyTrainer(
      SIZES,
      { format: 'none' },
      {
        ...{ adapter: { method: 'aflora', r: 2 }, steps: 6 },
        rules: [{ rule: named('aflora'), settings: { initial: 1, final: 1 } }],
      },
    );
    const names = trainer.trainer.parameters.map(({ name }) => name);
    let before = names.map((name) => tensorOf(trainer, name));
    const moving: number[] = [];
    for (let i = 0; i < 6; i++) {
      await trainer.train();
      const now = names.map((name) => tensorOf(trainer, name));
      const moved = names.filter((_, k) => worst(now[k] ?? [], before[k] ?? []) > 0);
      moving.push(moved.filter((name) => /lora[AB]$/.test(name)).length);
      expect(moved.filter((name) => /\.b$/.test(name)).length).toBe(names.length / 4);
      before = now;
    }
    expect(moving[0]).toBeGreaterThan(0);
    expect(moving[5]).toBe(0);
    dispose();
  });
});

it('dylora: a step changes one rank of each layer, the last that its pass used', async () => {
  const make = (ruled: boolean) =>
    tinyTrainer(
      SIZES,
      { format: 'none' },
      {
        ...{ adapter: { method: 'dylora', r: 4, loraAlpha: 8 }, steps: 6, weightDecay: 0.1 },
        ...(ruled ? { rules: [{ rule: named('dylora'), settings: {} }] } : {}),
      },
    );
  const [plain, ruled] = [make(false), make(true)];
  const columns = (trainer: ModelTrainer, name: string, before: Float32Array) => {
    const changed = new Set<number>();
    tensorOf(trainer, name).forEach((value, i) => {
      if (value !== before[i]) changed.add(i % 4);
    });
    return changed;
  };
  const name = (module: string) => `${module}.loraB`;
  const modules = ruled.trainer.adapters.layers.map(({ place }) => place.module);
  const seen = new Set<number>();
  for (let i = 0; i < 6; i++) {
    const before = new Map(
      modules.map((module) => [module, tensorOf(ruled.trainer, name(module))]),
    );
    // The first step of the run without the rule changes all ranks that its pass used.
    const first = new Map(modules.map((module) => [module, tensorOf(plain.trainer, name(module))]));
    await ruled.trainer.train();
    if (i === 0) await plain.trainer.train();
    for (const module of modules) {
      const changed = columns(ruled.trainer, name(module), before.get(module) as Float32Array);
      expect(changed.size, module).toBe(1);
      const [b] = changed as unknown as Iterable<number>;
      seen.add([...changed][0] as number);
      if (i > 0) continue;
      const all = columns(plain.trainer, name(module), first.get(module) as Float32Array);
      expect(Math.max(...all), module).toBe(b);
    }
  }
  expect(seen.size).toBeGreaterThan(2);
  plain.dispose();
  ruled.dispose();
});

describe('gs-lora', () => {
  const make = (weight?: number) =>
    tinyTrainer(
      { ...SIZES, numHiddenLayers: 2 },
      { format: 'none' },
      {
        ...{ warmup: 0, weightDecay: 0, steps: 8 },
        ...(weight === undefined
          ? {}
          : { rules: [{ rule: named('gs-lora'), settings: { weight, initial: 0 } }] }),
      },
    );

  it('takes the proximal step of each block after that of the optimiser', async () => {
    const [plain, ruled] = [make(), make(30)];
    const { lr } = await plain.trainer.train();
    await ruled.trainer.train();
    for (const block of [0, 1]) {
      const names = plain.trainer.trainer.parameters
        .map(({ name }) => name)
        .filter((own) => own.includes(`layers.${block}.`));
      const size = norm(names.flatMap((own) => [...tensorOf(plain.trainer, own)]));
      const keep = 1 - (lr * 30) / size;
      expect(keep).toBeGreaterThan(0);
      for (const own of names) {
        const expected = tensorOf(plain.trainer, own).map((value) => value * keep);
        expect(worst(tensorOf(ruled.trainer, own), expected), own).toBeLessThan(1e-7);
      }
    }
    plain.dispose();
    ruled.dispose();
  });

  it('ends at 0, and stays there', async () => {
    const ruled = make(1e4);
    for (let i = 0; i < 3; i++) await ruled.trainer.train();
    for (const { name } of ruled.trainer.trainer.parameters) {
      expect(norm(tensorOf(ruled.trainer, name)), name).toBe(0);
    }
    ruled.dispose();
  });
});
