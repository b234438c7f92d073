// DoRA's dynamic ranks against dense matrices in float64: shares, what is removed and when, and the penalty.
import { expect, it } from 'vitest';
import { rules } from '../../lib/index.js';
import { randomValues } from '../finetune/setup.js';
import { norm, product } from '../starts/setup.js';
import { type MockRun, type MockTensor, mockRun } from './mock-run.js';

const SIZES = { one: { N: 5, K: 7 }, two: { N: 6, K: 4 } } as const;
const R = 3;
const MODULES = ['one', 'two'] as const;

function tensors(module: (typeof MODULES)[number], seed: number): Record<string, MockTensor> {
  const { N, K } = SIZES[module];
  return {
    loraA: { shape: [R, K], values: randomValues(R * K, seed) },
    loraB: { shape: [N, R], values: randomValues(N * R, seed + 1) },
    loraE: { shape: [R, 1], values: randomValues(R, seed + 2) },
  };
}

const SETTINGS = { target: 1, initial: 2, final: 3, every: 2, beta: 0.8, variance: 0.3 };
const make = () =>
  mockRun(rules.doraDynamic, {
    layers: { one: tensors('one', 1), two: tensors('two', 9) },
    steps: 9,
    settings: SETTINGS,
  });

const valuesOf = (run: MockRun, name: string) => run.parameters.get(name)?.values() ?? [];

/** Norm of each component, made whole, over that of their sum. */
function shares(run: MockRun, module: (typeof MODULES)[number]): number[] {
  const { N, K } = SIZES[module];
  const [a, b, e] = ['loraA', 'loraB', 'loraE'].map((part) =>
    valuesOf(run, `${module}.${part}`),
  ) as unknown as [ArrayLike<number>, ArrayLike<number>, ArrayLike<number>];
  const parts = Array.from({ length: R }, (_, i) =>
    product(
      Array.from({ length: N }, (_, n) => (b[n * R + i] as number) * (e[i] as number)),
      Array.from({ length: K }, (_, k) => a[i * K + k] as number),
      N,
      1,
      K,
    ),
  );
  const whole = (parts[0] as Float64Array).map((_, at) =>
    parts.reduce((sum, part) => sum + (part[at] as number), 0),
  );
  return parts.map((part) => norm(part) / (norm(whole) + 1e-7));
}

it('removes the components with the smallest smoothed shares, with a cubic curve', () => {
  const run = make();
  const smooth: Record<string, number[]> = { one: [0, 0, 0], two: [0, 0, 0] };
  const removed: number[] = [];
  for (const [step] of Array.from({ length: 9 }).entries()) {
    run.step = step + 1;
    for (const module of MODULES) {
      for (const [part, { values }] of Object.entries(tensors(module, 20 * step + 3))) {
        run.parameters.get(`${module}.${part}`)?.write(values);
      }
    }
    const now = Object.fromEntries(MODULES.map((module) => [module, shares(run, module)]));
    rules.doraDynamic.after?.(run as never);
    const zeros = MODULES.map((module) =>
      Array.from(valuesOf(run, `${module}.loraE`), (value) => value === 0),
    );
    // Pruning begins after step 2 and takes four steps; then what is gone stays gone.
    if (run.step <= 6) {
      for (const module of MODULES) {
        smooth[module] = (smooth[module] as number[]).map(
          (value, i) => 0.8 * value + 0.2 * (now[module]?.[i] as number),
        );
      }
    }
    for (const module of MODULES) {
      for (const [i, own] of (run.state[`share/${module}`] as Float64Array).entries()) {
        expect(own).toBeCloseTo(smooth[module]?.[i] as number, 5);
      }
    }
    const due = [2, 4, 6].includes(run.step) || run.step > 6;
    const progress = Math.min(1, Math.max(0, (run.step - 2) / 4));
    const count = due ? Math.floor(6 * (2 / 3) * progress ** 3) : 0;
    const order = MODULES.flatMap((module) =>
      (smooth[module] as number[]).map((score, i) => ({ module, i, score })),
    ).sort((x, y) => x.score - y.score);
    const gone = order.slice(0, count);
    const expected = MODULES.map((module) =>
      Array.from({ length: R }, (_, i) => gone.some((x) => x.module === module && x.i === i)),
    );
    expect(zeros, `step ${run.step}`).toEqual(expected);
    removed.push(count);
  }
  expect(removed).toEqual([0, 0, 0, 0, 0, 4, 4, 4, 4]);
  rules.doraDynamic.finish?.(run as never);
  expect([...run.kept.values()].flat().reduce((a, b) => a + b, 0)).toBe(2);
});

it('adds the gradient of the mean variance, until the pruning ends', () => {
  const run = make();
  const penalty = (change?: {
    readonly name: string;
    readonly at: number;
    readonly by: number;
  }) => {
    let sum = 0;
    for (const module of MODULES) {
      const { N, K } = SIZES[module];
      for (const [part, n, row, entry] of [
        ['loraA', K, K, 1],
        ['loraB', N, 1, R],
      ] as const) {
        const values = Float64Array.from(valuesOf(run, `${module}.${part}`));
        if (change?.name === `${module}.${part}`)
          values[change.at] = (values[change.at] as number) + change.by;
        for (let i = 0; i < R; i++) {
          const own = Array.from({ length: n }, (_, k) => values[i * row + k * entry] as number);
          const mean = own.reduce((a, b) => a + b) / n;
          sum += own.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1);
        }
      }
    }
    return (0.3 * sum) / (4 * R);
  };
  const withGradients = () => {
    for (const parameter of run.parameters.values()) {
      parameter.gradient = new Float32Array(parameter.values().length);
    }
    rules.doraDynamic.gradients?.(run as never);
  };
  withGradients();
  for (const [name, { gradient = [] }] of run.parameters) {
    for (let at = 0; at < gradient.length; at++) {
      const by = 1e-5;
      const slope = (penalty({ name, at, by }) - penalty({ name, at, by: -by })) / (2 * by);
      expect(gradient[at], `${name}[${at}]`).toBeCloseTo(slope, 6);
    }
  }
  run.step = 6;
  withGradients();
  expect(
    [...run.parameters.values()].every(({ gradient }) => gradient?.every((g) => g === 0)),
  ).toBe(true);
});

it('begins with gates of 0 between random factors', () => {
  const run = make();
  rules.doraDynamic.prepare?.(run as never);
  for (const module of MODULES) {
    expect(Array.from(valuesOf(run, `${module}.loraE`))).toEqual([0, 0, 0]);
    const { K } = SIZES[module];
    const [a, b] = ['loraA', 'loraB'].map((part) => Array.from(valuesOf(run, `${module}.${part}`)));
    expect(Math.max(...(a as number[]).map(Math.abs))).toBeLessThanOrEqual(Math.sqrt(6 / K));
    expect(Math.max(...(b as number[]).map(Math.abs))).toBeLessThanOrEqual(Math.sqrt(6 / R));
    expect(Math.max(...(b as number[]).map(Math.abs))).toBeGreaterThan(Math.sqrt(6 / R) / 2);
  }
});
