// Every way to merge against its definition on dense updates in float64.
import { describe, expect, it } from 'vitest';
import { uniform } from '../../lib/core/random.js';
import { type AnyMerge, type Device, type LoraUpdate, mergeMethods } from '../../lib/index.js';
import { updateNorm } from '../../lib/merging/averages/hetlora.js';
import {
  mergeUpdates,
  type RandomOf,
  seededRandom,
  settingsOf,
  type Updates,
  weightsOf,
} from '../../lib/merging/merge-updates.js';
import { mergedParts } from '../../lib/merging/methods/knots.js';
import { DEVICES } from '../conformance/operands.js';
import * as oracle from '../oracle/merging.js';

type Matrix = number[][];

const SIZES = { up: [13, 9], down: [7, 12] } as const;

interface Given {
  readonly ranks: readonly number[];
  readonly scalings: readonly number[];
  readonly weights: readonly number[] | undefined;
  readonly settings: Readonly<Record<string, unknown>>;
  /** Adapters that lack a layer. */
  readonly without?: Readonly<Record<number, string>>;
  /** All adapters have this A. */
  readonly sameA?: boolean;
}

const rows = (values: Float32Array, n: number, k: number): Matrix =>
  Array.from({ length: n }, (_, i) => [...values.subarray(i * k, (i + 1) * k)]);

/** Values on a coarse grid, so that magnitudes, sums and signs are often exactly equal. */
function drawn(length: number, ...parts: (number | string)[]): Float32Array {
  const next = uniform(...parts);
  return Float32Array.from({ length }, () => Math.round((next() - 0.5) * 16) / 8);
}

function adaptersOf({ ranks, scalings, without = {}, sameA = false }: Given): Updates[] {
  return ranks.map((r, t) => {
    const modules = Object.entries(SIZES).filter(([module]) => without[t] !== module);
    return new Map(
      modules.map(([module, [N, K]]) => [
        module,
        {
          loraA: drawn(r * K, sameA ? 0 : t, module, 'a'),
          loraB: drawn(N * r, t, module, 'b'),
          r,
          inFeatures: K,
          outFeatures: N,
          scaling: scalings[t] as number,
        },
      ]),
    );
  });
}

const taskOf = ({ loraA, loraB, r, inFeatures, outFeatures, scaling }: LoraUpdate) => ({
  a: rows(loraA, r, inFeatures),
  b: rows(loraB, outFeatures, r),
  scaling,
});

/** A draw that is the same however often it is asked. */
const randomOf: RandomOf = seededRandom(7);

type Expect = (
  tasks: ReturnType<typeof taskOf>[],
  weights: readonly number[],
  settings: Record<string, number> & { sign: string },
  context: { randoms: (tensor: string) => (() => number)[]; ranks: number[] },
) => Matrix;

/** Merges A and B with roots of weights. */
const overFactors =
  (
    merge: (
      all: Matrix[],
      weights: number[],
      s: Parameters<Expect>[2],
      randoms: (() => number)[],
    ) => Matrix,
  ): Expect =>
  (tasks, weights, settings, { randoms }) => {
    const products = weights.map((w, t) => w * (tasks[t]?.scaling as number));
    const roots = products.map((p) => Math.sqrt(Math.abs(p)));
    const signed = roots.map((root, t) => Math.sign(products[t] as number) * root);
    const a = merge(
      tasks.map((task) => task.a),
      signed,
      settings,
      randoms('loraA'),
    );
    const b = merge(
      tasks.map((task) => task.b),
      roots,
      settings,
      randoms('loraB'),
    );
    return oracle.product(b, a);
  };

const overUpdates =
  (
    merge: (
      all: Matrix[],
      weights: number[],
      s: Parameters<Expect>[2],
      randoms: (() => number)[],
    ) => Matrix,
  ): Expect =>
  (tasks, weights, settings, { randoms, ranks }) => {
    const dense = merge(
      tasks.map(oracle.updateOf),
      weights.map((w, t) => w * (tasks[t]?.scaling as number)),
      settings,
      randoms('update'),
    );
    return oracle.truncate(dense, settings.rank || Math.max(...ranks));
  };

type Entries = Parameters<typeof overFactors>[0];
const kept = (m: Matrix, density: number) =>
  density >= 1 ? m : oracle.largest(m, Math.floor(density * m.flat().length));
const dropped = (all: Matrix[], density: number, randoms: (() => number)[]) =>
  all.map((m, t) =>
    m.map((row) =>
      row.map((value) => ((randoms[t] as () => number)() < density ? value / density : 0)),
    ),
  );
const sums: Entries = (all, w) => oracle.sum(all, w);
const tiesOf: Entries = (all, w, { density, sign }) =>
  oracle.disjoint(
    all.map((m) => kept(m, density as number)),
    w,
    sign,
  );
const pruned: Entries = (all, w, { density }) =>
  oracle.sum(
    all.map((m) => kept(m, density as number)),
    w,
  );
const dare: Entries = (all, w, { density }, randoms) =>
  oracle.sum(dropped(all, density as number, randoms), w);
const dareElected: Entries = (all, w, { density, sign }, randoms) =>
  oracle.disjoint(dropped(all, density as number, randoms), w, sign);
const exact = (tasks: Parameters<Expect>[0], weights: readonly number[]) =>
  oracle.sum(tasks.map(oracle.updateOf), weights);
const apart = (tasks: Parameters<Expect>[0], ofA: readonly number[], ofB: readonly number[]) => {
  const a = oracle.sum(
    tasks.map((task) => task.a),
    ofA,
  );
  const b = oracle.sum(
    tasks.map((task) => task.b),
    ofB,
  );
  return oracle
    .product(b, a)
    .map((row) => row.map((value) => value * (tasks[0]?.scaling as number)));
};
const orExact = (m: Matrix, rank: number) => (rank === 0 ? m : oracle.truncate(m, rank));
const padded = (m: Matrix, r: number, k: number) =>
  Array.from({ length: r }, (_, i) => m[i] ?? new Array<number>(k).fill(0));

const EXPECTED: Readonly<Record<string, Expect>> = {
  linear: overFactors(sums),
  ties: overFactors(tiesOf),
  'dare-linear': overFactors(dare),
  'dare-ties': overFactors(dareElected),
  'magnitude-prune': overFactors(pruned),
  'ties-svd': overUpdates(tiesOf),
  'dare-linear-svd': overUpdates(dare),
  'dare-ties-svd': overUpdates(dareElected),
  'magnitude-prune-svd': overUpdates(pruned),
  cat: exact,
  svd: overUpdates(sums),
  'task-arithmetic': (tasks, weights, { rank }) => orExact(exact(tasks, weights), rank as number),
  knots: (tasks, weights, { density, scale, rank }) =>
    orExact(
      oracle.knots(tasks.map(oracle.updateOf), weights, density as number, scale as number),
      rank as number,
    ),
  pem: (tasks, weights) => apart(tasks, weights.map(Math.abs), weights),
  ema: (tasks, _, { decay = 0 }) => {
    let [a, b] = [tasks[0]?.a as Matrix, tasks[0]?.b as Matrix];
    for (const next of tasks.slice(1)) {
      a = oracle.sum([a, next.a], [decay, 1 - decay]);
      b = oracle.sum([b, next.b], [decay, 1 - decay]);
    }
    return oracle.updateOf({ a, b, scaling: tasks[0]?.scaling as number });
  },
  fedavg: (tasks, weights) => apart(tasks, weights, weights),
  ffa: (tasks, weights) => exact(tasks, weights),
  flexlora: (tasks, weights, { rank }, { ranks }) =>
    oracle.truncate(exact(tasks, weights), rank || Math.max(...ranks)),
  stacking: exact,
  hetlora: (tasks, weights, { rank = 0 }, { ranks }) => {
    const most = Math.max(...ranks);
    const sizes = tasks.map(
      ({ a, b }, t) => (weights[t] as number) * Math.hypot(...oracle.product(b, a).flat()),
    );
    const total = sizes.reduce((x, y) => x + y, 0);
    const shares = sizes.map((size) => size / total);
    const K = tasks[0]?.a[0]?.length as number;
    const a = oracle.sum(
      tasks.map((task) => padded(task.a, most, K)),
      shares,
    );
    const b = oracle.sum(
      tasks.map((task) => task.b.map((row) => Array.from({ length: most }, (_, i) => row[i] ?? 0))),
      shares,
    );
    const r = rank || most;
    const cut = { a: a.slice(0, r), b: b.map((row) => row.slice(0, r)) };
    return oracle.updateOf({ ...cut, scaling: tasks[0]?.scaling as number });
  },
};

const same = { ranks: [4, 4, 4], scalings: [2, 2, 2] };
const scaled = { ranks: [4, 4, 4], scalings: [2, 0.5, 3], weights: [0.7, 1.25, -0.5] };
const mixed = { ranks: [4, 2, 6], scalings: [2, 0.5, 1], weights: [0.7, -1.25, 0.5] };
const shares = { ranks: [4, 2, 6], scalings: [2, 0.5, 1], weights: [3, 0, 1] };

const CASES: readonly (readonly [name: string, given: Given])[] = [
  ['linear', { ...scaled, settings: {} }],
  ['linear', { ...scaled, settings: {}, without: { 1: 'up' } }],
  ['cat', { ...mixed, settings: {} }],
  ['cat', { ...mixed, settings: {}, without: { 0: 'down' } }],
  ['svd', { ...mixed, settings: {} }],
  ['svd', { ...mixed, settings: { rank: 3 } }],
  ...['ties', 'ties-svd'].flatMap((name) =>
    ['total', 'frequency'].flatMap((sign) =>
      [0, 0.33, 0.5, 1].map((density) => {
        const settings = { density, sign };
        return [name, name === 'ties' ? { ...scaled, settings } : { ...mixed, settings }] as const;
      }),
    ),
  ),
  ...['dare-linear', 'dare-ties'].flatMap((name) => [
    [name, { ...scaled, settings: { density: 0.4 } }] as const,
    [`${name}-svd`, { ...mixed, settings: { density: 0.4, rank: 2 } }] as const,
    [`${name}-svd`, { ...mixed, settings: { density: 1 } }] as const,
  ]),
  ['magnitude-prune', { ...scaled, settings: { density: 0.335 } }],
  ['magnitude-prune-svd', { ...mixed, settings: { density: 0.335, rank: 40 } }],
  ['task-arithmetic', { ...mixed, settings: {} }],
  ['task-arithmetic', { ...mixed, settings: { rank: 3 } }],
  ['knots', { ...mixed, settings: { density: 0.4, scale: 0.8 } }],
  ['knots', { ...mixed, settings: { density: 1 } }],
  ['knots', { ...mixed, settings: { density: 0.2, rank: 4 } }],
  ['pem', { ...same, weights: [0.4, 0.6, -1], settings: {} }],
  ['compeft', { ...same, weights: [0.4, 0.6, -1], settings: { density: 0.2 } }],
  ...['mean', 'mean-abs'].map(
    (magnitude) =>
      ['compeft', { ...same, weights: undefined, settings: { density: 0.1, magnitude } }] as const,
  ),
  ['ema', { ...same, weights: undefined, settings: { decay: 0.9 } }],
  ['fedavg', { ...same, weights: [10, 30, 0], settings: {} }],
  ['ffa', { ...same, weights: [10, 30, 5], settings: {}, sameA: true }],
  ['flexlora', { ...shares, settings: {} }],
  ['flexlora', { ...shares, settings: { rank: 3 } }],
  ['stacking', { ...shares, settings: {} }],
  ['hetlora', { ...shares, scalings: [2, 2, 2], settings: {} }],
  ['hetlora', { ...shares, scalings: [2, 2, 2], weights: undefined, settings: { rank: 3 } }],
];

/** What the oracle makes of all layers of ComPEFT, whose compression sees them together. */
function compressed(adapters: readonly Updates[], settings: Record<string, unknown>): Updates[] {
  return adapters.map((updates) => {
    const tensors = [...updates.values()].flatMap((update) => {
      const { a, b } = taskOf(update);
      return [a, b];
    });
    const { density, magnitude, scale } = settings as {
      density: number;
      magnitude: string;
      scale: number;
    };
    const after = oracle.ternary(tensors, density, magnitude, scale);
    return new Map(
      [...updates].map(([module, update], i) => [
        module,
        {
          ...update,
          loraA: Float32Array.from((after[2 * i] as Matrix).flat()),
          loraB: Float32Array.from((after[2 * i + 1] as Matrix).flat()),
        },
      ]),
    );
  });
}

function check(mine: LoraUpdate, wanted: Matrix, what: string): void {
  const got = oracle.updateOf(taskOf(mine)).flat();
  const expected = wanted.flat();
  const most = Math.max(1e-30, ...expected.map(Math.abs));
  expected.forEach((value, i) => {
    const error = Math.abs((got[i] as number) - value);
    if (!(error <= 4e-6 * most)) throw new Error(`${what}[${i}] is ${got[i]}, expected ${value}`);
  });
}

async function run(name: string, given: Given, device: Device): Promise<void> {
  const merge = mergeMethods.find((each) => each.merge === name) as AnyMerge;
  const adapters = adaptersOf(given);
  const weights = weightsOf(merge, adapters.length, given.weights);
  const settings = settingsOf(merge, given.settings);
  const done = await mergeUpdates({ merge, adapters, weights, settings, device, randomOf });
  expect([...done.keys()].sort()).toEqual(['down', 'up']);
  const wanted = name === 'compeft' ? compressed(adapters, { ...settings }) : adapters;
  const rule = (name === 'compeft' ? EXPECTED.pem : EXPECTED[name]) as Expect;
  for (const [module, mine] of done) {
    const here = [...adapters.keys()].filter((t) => adapters[t]?.has(module));
    const updates = here.map((t) => wanted[t]?.get(module) as LoraUpdate);
    const randoms = (tensor: string) => here.map((t) => randomOf(t, module, tensor));
    const own = here.map((t) => weights[t] as number);
    const ranks = updates.map(({ r }) => r);
    const expected = rule(updates.map(taskOf), own, settings as never, { randoms, ranks });
    check(mine, expected, `${name} of ${module}`);
  }
}

const DENSE = CASES.filter(([name]) => name.endsWith('-svd'));
const HOST = CASES.filter(([name]) => !name.endsWith('-svd'));
const titled = (cases: typeof CASES) =>
  cases.map(([name, given]) => [`${name} ${JSON.stringify(given.settings)}`, name, given] as const);

describe('merges on the host', () => {
  it.each(titled(HOST))('%s', (_, name, given) => run(name, given, 'cpu'));
});

describe.each(DEVICES)('merges of whole updates on %s', (device) => {
  it.each(titled(DENSE))('%s', (_, name, given) => run(name, given, device));
});

it('each way to merge has a case', () => {
  const tested = new Set(CASES.map(([name]) => name));
  expect([...tested].sort()).toEqual(mergeMethods.map(({ merge }) => merge).sort());
});

it('the norm of an update comes from its factors', () => {
  const [first] = adaptersOf({ ...mixed, settings: {} });
  for (const update of first?.values() ?? []) {
    const dense = Math.hypot(...oracle.updateOf({ ...taskOf(update), scaling: 1 }).flat());
    expect(Math.abs(updateNorm(update) - dense)).toBeLessThan(1e-12 * dense);
  }
});

it('a vote of 0 in KnOTS follows the majority of the layer', () => {
  const settings = { density: 1, scale: 2, rank: 0 };
  const of = (...parts: number[][]) => [
    ...mergedParts(
      parts.map((part) => Float32Array.from(part)),
      { weights: [1, 3], settings },
    ),
  ];
  expect(of([1, 2, 3], [-1, 1, 1])).toEqual([2, 5, 6]);
  expect(of([1, -2, -3], [-1, -1, -1])).toEqual([-6, -5, -6]);
});
