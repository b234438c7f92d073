// Rules that move or add ranks, against their formulas: ALoRA's ablation, IncreLoRA's scores and reserves.
import { describe, expect, it } from 'vitest';
import { rules } from '../../lib/index.js';
import { randomValues, tinyTrainer } from '../finetune/setup.js';
import { product, worst } from '../starts/setup.js';
import { type MockRun, mockRun } from './mock-run.js';
import { named, tensorOf } from './setup.js';

const SIZES = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };
const [R, N, K] = [4, 3, 5];

const layer = (seed: number, gate = 'loraE') => ({
  loraA: { shape: [R, K], values: randomValues(R * K, seed) },
  loraB: { shape: [N, R], values: randomValues(N * R, seed + 1) },
  [gate]: { shape: [R], values: randomValues(R, seed + 2) },
});

const valuesOf = (run: MockRun, name: string) =>
  Array.from(run.parameters.get(name)?.values() ?? []);

describe('alora', () => {
  /** What each open rank is worth to the loss. */
  const WORTH: Readonly<Record<string, readonly number[]>> = {
    one: [0.5, 0.1, 0.2, 0.7],
    two: [0.9, 0.8, 0.3, 0.6],
    three: [0.4, 0.05, 0.6, 0.2],
  };

  /** What it is worth without any other. */
  const SOLO: typeof WORTH = {
    one: [0.1, 0.5, 0, 0],
    two: [0.9, -2, 0, 0],
    three: [0.5, 0.55, 0, 0],
  };

  function make(settings: Readonly<Record<string, number>>) {
    const modules = Object.keys(WORTH);
    const layers = Object.fromEntries(modules.map((name, i) => [name, layer(10 * i, 'gate')]));
    const states = Object.fromEntries(
      modules.flatMap((name) =>
        (['loraA', 'loraB'] as const).map((part) => [
          `${name}.${part}`,
          { m: new Float32Array(part === 'loraA' ? R * K : N * R).fill(1) },
        ]),
      ),
    );
    const indices = new Set<number | undefined>();
    const run: MockRun = mockRun(rules.alora, {
      ...{ layers, states, steps: 10, settings: { every: 2, ...settings } },
      lossOf: ({ part, index }) => {
        expect(part).toBe(9);
        indices.add(index);
        const gates = modules.flatMap((name) =>
          valuesOf(run, `${name}.gate`).map((gate, i) => ({ name, gate, i })),
        );
        const open = gates.filter(({ gate }) => gate === 1);
        const worth = open.length === 1 ? SOLO : WORTH;
        return open.reduce((loss, { name, i }) => loss - (worth[name]?.[i] as number), 5);
      },
    });
    rules.alora.prepare?.(run as never);
    return { run, modules, indices };
  }

  it('begins with half of the ranks, open, over an update of 0', () => {
    const { run, modules } = make({});
    for (const name of modules) {
      expect(valuesOf(run, `${name}.gate`)).toEqual([1, 1, 0, 0]);
      expect(valuesOf(run, `${name}.loraB`).every((value) => value === 0)).toBe(true);
      expect(rules.alora.trains?.(run as never, `${name}.gate`)).toBe(false);
      expect(rules.alora.trains?.(run as never, `${name}.loraA`)).toBe(true);
    }
  });

  it('takes the ranks that the loss misses least, and gives them to layers that lost none', () => {
    const { run, modules, indices } = make({ begin: 2, move: 1, rounds: 1 });
    for (const name of modules) {
      run.parameters.get(`${name}.loraB`)?.write(new Float32Array(N * R).fill(3));
    }
    const before = valuesOf(run, 'three.loraA');
    run.step = 1;
    rules.alora.after?.(run as never);
    expect(indices.size).toBe(0);
    run.step = 2;
    rules.alora.after?.(run as never);
    // Both together: one 0.6 0.6, two 1.8 −1.2, three 0.9 0.6. Rank 1 of two goes; three has a larger mean than one.
    expect(modules.map((name) => valuesOf(run, `${name}.gate`))).toEqual([
      [1, 1, 0, 0],
      [1, 0, 0, 0],
      [1, 1, 1, 0],
    ]);
    expect([...indices]).toEqual([1]);
    // The new rank begins with a column of 0 and no memory; the others go on.
    const b = valuesOf(run, 'three.loraB');
    expect(b).toEqual(Array.from({ length: N * R }, (_, i) => (i % R === 2 ? 0 : 3)));
    const a = valuesOf(run, 'three.loraA');
    expect(a.map((value, i) => value === before[i])).toEqual(
      Array.from({ length: R * K }, (_, i) => Math.floor(i / K) !== 2),
    );
    const memory = run.parameters.get('three.loraA')?.state('m') ?? [];
    expect(Array.from(memory)).toEqual(
      Array.from({ length: R * K }, (_, i) => (Math.floor(i / K) === 2 ? 0 : 1)),
    );
    run.step = 4;
    rules.alora.after?.(run as never);
    expect(valuesOf(run, 'three.gate')).toEqual([1, 1, 1, 0]);
    rules.alora.finish?.(run as never);
    expect(run.kept.get('three')).toEqual([1, 1, 1, 0]);
  });

  it('scores by both ablations: without a rank, and with it alone', () => {
    const seen: { readonly gates: number[][]; readonly loss: number }[] = [];
    const { run, modules } = make({ begin: 2, move: 1, rounds: 1 });
    const before = run.lossOf;
    (run as { lossOf: MockRun['lossOf'] }).lossOf = (pass) => {
      const loss = before(pass);
      seen.push({ gates: modules.map((name) => valuesOf(run, `${name}.gate`)), loss });
      return loss;
    };
    run.step = 2;
    rules.alora.after?.(run as never);
    const open = (gates: number[][]) => gates.flat().reduce((a, b) => a + b, 0);
    expect(seen.map(({ gates }) => open(gates))).toEqual(
      Array.from({ length: 12 }, (_, i) => (i % 2 ? 1 : 5)),
    );
  });
});

describe('increlora', () => {
  const modules = ['one', 'two', 'three'];
  const settings = { begin: 1, target: 2, initial: 1, every: 2, top: 2, beta1: 0.7, beta2: 0.6 };

  it('adds a rank to the layers with the largest smoothed |ΔW ⊙ dW|', () => {
    const layers = Object.fromEntries(modules.map((name, i) => [name, layer(10 * i)]));
    const gradientAt = (step: number, i: number) =>
      randomValues(N * K, 50 * step + i).map((value) => value * (1 + ((i * 2) % 3)));
    const run: MockRun = mockRun(rules.increlora, {
      ...{ layers, steps: 10, settings },
      weightGradients: () =>
        new Map(modules.map((name, i) => [name, gradientAt(run.step, i)] as const)),
    });
    rules.increlora.prepare?.(run as never);
    const e0 = valuesOf(run, 'one.loraE');
    expect(e0[0]).toBe(randomValues(R, 2)[0]);
    expect(e0.slice(1)).toEqual([Math.fround(1e-5), 0, 0]);
    const s = [0, 0, 0];
    const u = [0, 0, 0];
    let ranks = [1, 1, 1];
    for (let step = 1; step <= 6; step++) {
      run.step = step - 1;
      const whole = ranks.reduce((a, b) => a + b, 0) === 6;
      if (!whole) {
        modules.forEach((name, i) => {
          const [a, b, e] = ['loraA', 'loraB', 'loraE'].map((part) =>
            valuesOf(run, `${name}.${part}`),
          );
          const scaled = (b as number[]).map((value, at) => value * (e?.[at % R] as number));
          const update = product(scaled, a as number[], N, R, K);
          const dw = gradientAt(run.step, i);
          const now =
            update.reduce((sum, value, at) => sum + Math.abs(value * (dw[at] as number)), 0) /
            Math.sqrt(N * K);
          s[i] = 0.7 * (s[i] as number) + 0.3 * now;
          u[i] = 0.6 * (u[i] as number) + 0.4 * Math.abs(now - (s[i] as number));
        });
      }
      rules.increlora.before?.(run as never);
      expect(worst(run.state.sensitivity as Float64Array, s)).toBeLessThan(1e-7);
      expect(worst(run.state.uncertainty as Float64Array, u)).toBeLessThan(1e-7);
      run.step = step;
      rules.increlora.after?.(run as never);
      if (step > 1 && step % 2 === 0 && !whole) {
        const order = [0, 1, 2].sort(
          (x, y) => (s[y] as number) * (u[y] as number) - (s[x] as number) * (u[x] as number),
        );
        const left = 6 - ranks.reduce((a, b) => a + b, 0);
        for (const i of order.slice(0, Math.min(2, left))) ranks[i] = (ranks[i] as number) + 1;
      }
      expect(Array.from(run.state.ranks as Float64Array), `step ${step}`).toEqual(ranks);
    }
    expect(ranks.reduce((a, b) => a + b, 0)).toBe(6);
    // No reserve is left when nothing is to be added.
    modules.forEach((name, i) => {
      const e = valuesOf(run, `${name}.loraE`);
      expect(e.slice(ranks[i]).every((value) => value === 0)).toBe(true);
    });
    rules.increlora.finish?.(run as never);
    ranks = modules.map((name) => (run.kept.get(name) as number[]).reduce((a, b) => a + b, 0));
    expect(ranks.reduce((a, b) => a + b, 0)).toBe(6);
  });

  it('trains the active ranks, and the vectors of the next one', async () => {
    const { trainer, dispose } = tinyTrainer(
      SIZES,
      { format: 'none' },
      {
        ...{ adapter: { method: 'adalora', r: 4 }, steps: 6, weightDecay: 0.1 },
        rules: [
          { rule: named('increlora'), settings: { target: 2, initial: 3, every: 2, top: 2 } },
        ],
      },
    );
    const read = () =>
      new Map(
        trainer.trainer.parameters.map(({ name }) => [name, tensorOf(trainer, name)] as const),
      );
    await trainer.train();
    const before = read();
    await trainer.train();
    for (const { place } of trainer.adapters.layers) {
      const changed = (part: string, rankOf: (i: number) => number) => {
        const name = `${place.module}.${part}`;
        const old = before.get(name) as Float32Array;
        const ranks = new Set<number>();
        tensorOf(trainer, name).forEach((value, i) => {
          if (value !== old[i]) ranks.add(rankOf(i));
        });
        return [...ranks].sort();
      };
      expect(
        changed('loraE', (i) => i),
        place.module,
      ).toEqual([0]);
      expect(
        changed('loraA', (i) => Math.floor(i / place.K)),
        place.module,
      ).toEqual([0, 1]);
      expect(
        changed('loraB', (i) => i % 4),
        place.module,
      ).toEqual([0, 1]);
    }
    for (let i = 2; i < 6; i++) await trainer.train();
    trainer.finish();
    const kept = [...(trainer.rules?.kept.values() ?? [])].map((flags) =>
      flags.reduce((a, b) => a + b, 0),
    );
    const layers = trainer.adapters.layers.length;
    expect(kept.reduce((a, b) => a + b, 0)).toBe(layers + 4);
    dispose();
  });
});
