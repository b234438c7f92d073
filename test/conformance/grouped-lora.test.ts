// GroupedLora: within c · u · P of float64 formulas that take row by row, and on the host's devices the
// bits of single calls, in any order of the rows.
import { describe, expect, it } from 'vitest';
import {
  type DType,
  type GroupedGradients,
  getThreads,
  type LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  scope,
  setThreads,
  Tensor,
} from '../../lib/index.js';
import { type Bounded, bound, exact, groupedBackward64, groupedForward64 } from '../oracle.js';
import { draws, type GroupedCase, type GroupedShape, groupedCase, nameOf } from './grouped-case.js';
import { DEVICES, DTYPES, mixes, operand, WEIGHTS } from './operands.js';

const isCuda = (device: string): boolean => device.startsWith('cuda');
const CASES: readonly GroupedShape[] = [
  { M: 1, N: 1, K: 1, ranks: [1], rowScale: true },
  { M: 0, N: 6, K: 10, ranks: [4, 2], bias: true },
  { M: 2, N: 65, K: 172, ranks: [8, 3], bias: true, loraBias: true },
  { M: 7, N: 31, K: 63, ranks: [4, 64, 5], nullEvery: 3, loraBias: true },
  { M: 9, N: 64, K: 128, ranks: [4, 8, 2], sameDType: true, sorted: true, bias: true },
  { M: 33, N: 33, K: 65, ranks: [16, 4, 7, 32], dropout: 0.25, bias: true, nullEvery: 5 },
  { M: 17, N: 40, K: 24, ranks: [5, 5], dropout: 0.2, maskGiven: true, sorted: true },
  { M: 40, N: 24, K: 1024, ranks: [4, 16, 9], rowScale: true, loraBias: true, nullEvery: 4 },
  { M: 70, N: 13, K: 33, ranks: [300, 1], sorted: true },
  { M: 12, N: 20, K: 28, ranks: [6, 3, 2], rowScale: true, dropout: 0.3, bias: true },
];
const SPECS = WEIGHTS.filter(({ name }) => /^dense|^nf4 with/.test(name));
const GROUPS = DEVICES.flatMap((device) =>
  DTYPES.flatMap((dtype) =>
    SPECS.filter((spec) => mixes(spec, dtype)).map((spec) => ({ device, dtype, spec })),
  ),
);

const PARTS = ['dLoraA', 'dLoraB', 'dLoraBias'] as const;

/** One gradient of one adapter. */
function partOf(g: GroupedGradients, name: string, part: (typeof PARTS)[number]): Tensor {
  return (g.adapters.get(name) as Record<string, Tensor>)[part] as Tensor;
}

/** Every output of a batch against the formulas. */
async function checkBounds(c: GroupedCase, dtype: DType): Promise<void> {
  const { M, N } = { M: c.rows.length, N: c.w.shape[0] as number };
  const empty = M === 0 ? { mostlyZeros: 'no tokens' } : {};
  const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
  const check = async (part: string, tensor: Tensor | undefined, type: DType, want: Bounded) => {
    expect(tensor?.dtype, part).toBe(type);
    bound(`${part} ${c.name}`, await (tensor as Tensor).read(), want, { dtype: type, ...empty });
  };
  expect(y.shape).toEqual([M, N]);
  await check('y', y, dtype, groupedForward64(c.inputs));
  const gradients = c.group.backward(c.dy, saved, { needs: ['dx', 'dBias', 'adapters'] });
  expect(saved.disposed).toBe(true);
  const want = groupedBackward64(c.inputs, c.dy64);
  await check('dx', gradients.dx, dtype, want.dx);
  await check('dBias', gradients.dBias, dtype, want.dBias);
  const used = c.adapters.flatMap((_, e) => (c.inputs.adapterOf.includes(e) ? [nameOf(e)] : []));
  expect([...gradients.adapters.keys()].sort()).toEqual(used.sort());
  for (const [e, adapter] of c.adapters.entries()) {
    const got = gradients.adapters.get(nameOf(e));
    if (got === undefined) continue;
    const like = { dLoraA: adapter.loraA, dLoraB: adapter.loraB, dLoraBias: adapter.loraBias };
    for (const part of PARTS) {
      const tensor = like[part];
      if (tensor === undefined) expect(got[part]).toBeUndefined();
      else {
        const N1 = part === 'dLoraBias' ? [N] : tensor.shape;
        expect(got[part]?.shape).toEqual(N1);
        await check(`${part} of ${e}`, got[part], tensor.dtype, (want.adapters[e] as never)[part]);
      }
    }
  }
}

describe.each(GROUPS)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('forward and every gradient', async () => {
    for (const [index, shape] of CASES.entries()) {
      await scope(async () => {
        await checkBounds(groupedCase(shape, spec, dtype, device, index + 1), dtype);
      });
    }
  });
});

/** Rows `index` of a matrix, as a tensor. */
async function pick(all: Tensor, index: readonly number[]): Promise<Tensor> {
  const cols = all.shape.at(-1) as number;
  const bits = await all.read();
  const values = new Float32Array(index.length * cols);
  for (const [i, m] of index.entries()) {
    values.set(bits.subarray(m * cols, (m + 1) * cols), i * cols);
  }
  return Tensor.from(values, [index.length, cols], { dtype: all.dtype, device: all.device });
}

const SWEEP: readonly GroupedShape[] = [1, 2, 8, 64].flatMap((count) =>
  [1, 2, 5, 33, 130, 512].map((M) => ({
    M,
    N: 37,
    K: M === 5 ? 1024 : 70,
    ranks: Array.from({ length: count }, (_, e) => [4, 8, 16, 64, 31][e % 5] as number),
    ...(M % 3 === 0 ? { nullEvery: 4 } : {}),
    bias: true,
    loraBias: count < 8,
  })),
);

/** Every row and gradient against single calls of loraForward and loraBackward, bit for bit. */
async function checkSingleCalls(c: GroupedCase): Promise<void> {
  const { bias } = c.options;
  const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
  const got = c.group.backward(c.dy, saved);
  const base = bias === undefined ? {} : { bias };
  const dx = got.dx as Tensor;
  for (const [e, adapter] of [...c.adapters.entries(), [-1, undefined] as const]) {
    const index = c.inputs.adapterOf.flatMap((at, m) => (at === e ? [m] : []));
    if (index.length === 0) continue;
    const x = await pick(c.x, index);
    const dy = await pick(c.dy, index);
    const mine = await (await pick(y, index)).read();
    if (adapter === undefined) {
      exact(`y of null ${c.name}`, mine, await matmul(x, c.w, base).read());
      continue;
    }
    const single = loraForward(x, c.w, adapter, base);
    exact(`y of ${e} ${c.name}`, mine, await single.y.read());
    const want = loraBackward(dy, single.saved);
    exact(
      `dx of ${e} ${c.name}`,
      await (await pick(dx, index)).read(),
      await (want.dx as Tensor).read(),
    );
    for (const part of PARTS) {
      const tensor = want[part];
      if (tensor === undefined) continue;
      const other = got.adapters.get(nameOf(e))?.[part] as Tensor;
      exact(`${part} of ${e} ${c.name}`, await other.read(), await tensor.read());
    }
  }
}

const ALL = DEVICES.flatMap((device) =>
  (['f32', 'bf16'] as const).flatMap((dtype) =>
    SPECS.filter(({ name }) => name === `dense ${dtype}` || name.startsWith('nf4')).map((spec) => ({
      device,
      dtype,
      spec,
    })),
  ),
);
const HOST = ALL.filter(({ device }) => !isCuda(device));

describe.each(HOST)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('rows and gradients have the bits of single calls', { timeout: 60_000 }, async () => {
    for (const [index, shape] of SWEEP.entries()) {
      if (device === 'reference' && shape.M > 2) continue;
      await scope(() => checkSingleCalls(groupedCase(shape, spec, dtype, device, index + 1)));
    }
  });

  it('one adapter for all rows is loraForward, dropout by a seed included', async () => {
    await scope(async () => {
      const shape = {
        M: 19,
        N: 33,
        K: 65,
        ranks: [8, 8],
        dropout: 0.2,
        bias: true,
        loraBias: true,
      };
      const c = groupedCase(shape, spec, dtype, device, 5);
      for (const name of [nameOf(0), nameOf(1), null]) {
        const adapter = name === null ? undefined : (c.group.get(name) as LoraAdapter);
        const rows = c.rows.map(() => name);
        const { y, saved } = c.group.forward(c.x, c.w, rows, c.options);
        const got = c.group.backward(c.dy, saved);
        if (adapter === undefined) {
          exact(
            'y',
            await y.read(),
            await matmul(c.x, c.w, { bias: c.options.bias as Tensor }).read(),
          );
          expect(got.adapters.size).toBe(0);
          continue;
        }
        const single = loraForward(c.x, c.w, adapter, c.options);
        exact('y', await y.read(), await single.y.read());
        const want = loraBackward(c.dy, single.saved);
        const all = { ...got.adapters.get(name as string), dx: got.dx, dBias: got.dBias };
        for (const part of [...PARTS, 'dx', 'dBias'] as const) {
          if (want[part] === undefined) continue;
          exact(part, await (all[part] as Tensor).read(), await (want[part] as Tensor).read());
        }
      }
    });
  });
});

/** Elements `index` of a vector. */
const MOST_ROWS = { cpu: 33, others: 2 } as const;

describe.each(ALL)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('in any order of the rows, in any company, on any number of threads', async () => {
    const before = getThreads();
    for (const [index, shape] of SWEEP.entries()) {
      if (shape.M < 2 || shape.M > MOST_ROWS[device === 'cpu' ? 'cpu' : 'others']) continue;
      await scope(async () => {
        const c = groupedCase({ ...shape, rowScale: true }, spec, dtype, device, index + 1);
        const run = async (order: readonly number[]): Promise<[Float32Array, GroupedGradients]> => {
          const rowScale = await pickOf(c.options.rowScale as Tensor, order);
          const rows = order.map((m) => c.rows[m] as string | null);
          const x = await pick(c.x, order);
          const { y, saved } = c.group.forward(x, c.w, rows, { ...c.options, rowScale });
          return [await y.read(), c.group.backward(await pick(c.dy, order), saved)];
        };
        const straight = c.rows.map((_, m) => m);
        const [y, gradients] = await run(straight);
        // Any order of the adapters, an adapter's own rows in theirs; then only some of the rows.
        const place = draws(7);
        const keys = c.adapters.map(() => place(1000));
        const mixed = [...straight].sort((a, b) => {
          const [p, q] = [a, b].map((m) => keys[c.inputs.adapterOf[m] as number] ?? 500);
          return (p as number) - (q as number) || a - b;
        });
        const some = straight.filter((m) => m % 3 !== 1);
        const N = c.w.shape[0] as number;
        for (const [what, order] of [
          ['mixed', mixed],
          ['some', some],
        ] as const) {
          setThreads(what === 'mixed' ? 1 : 3);
          const [other, theirs] = await run(order);
          setThreads(before);
          order.forEach((m, i) => {
            const [mine, want] = [
              other.subarray(i * N, (i + 1) * N),
              y.subarray(m * N, (m + 1) * N),
            ];
            exact(`row ${m} ${what} ${c.name}`, mine, want);
          });
          const dx = await (theirs.dx as Tensor).read();
          const K = c.w.shape[1] as number;
          const dx0 = await (gradients.dx as Tensor).read();
          order.forEach((m, i) => {
            const want = dx0.subarray(m * K, (m + 1) * K);
            exact(`dx ${m} ${what} ${c.name}`, dx.subarray(i * K, (i + 1) * K), want);
          });
          if (what === 'some') continue;
          for (const [name, parts] of gradients.adapters) {
            for (const part of PARTS) {
              if (parts[part] === undefined) continue;
              const mine = await partOf(theirs, name, part).read();
              exact(`${part} of ${name} ${c.name}`, mine, await (parts[part] as Tensor).read());
            }
          }
        }
      });
    }
  });
});

async function pickOf(vector: Tensor, index: readonly number[]): Promise<Tensor> {
  const values = await vector.read();
  return Tensor.from(
    index.map((m) => values[m] as number),
    [index.length],
    { device: vector.device },
  );
}

describe.each(DEVICES)('%s', (device) => {
  const spec = WEIGHTS.find(({ name }) => name === 'nf4') as (typeof WEIGHTS)[number];

  it('only what is needed is computed, and it adds to what is there', async () => {
    await scope(async () => {
      const shape = { M: 9, N: 33, K: 64, ranks: [4, 8], bias: true, loraBias: true, sorted: true };
      const c = groupedCase(shape, spec, 'f32', device, 3);
      const { saved } = c.group.forward(c.x, c.w, c.rows, c.options);
      const all = c.group.backward(c.dy, saved, { keep: true });
      const only = c.group.backward(c.dy, saved, { needs: ['dBias'], keep: true });
      expect([Object.keys(only).sort(), only.adapters.size]).toEqual([['adapters', 'dBias'], 0]);
      exact('dBias', await (only.dBias as Tensor).read(), await (all.dBias as Tensor).read());
      const start = operand(4, 64, { seed: 8, device });
      const dx = operand(9, 64, { seed: 9, device });
      const into = new Map([[nameOf(0), { dLoraA: start.tensor }]]);
      const more = c.group.backward(c.dy, saved, {
        accumulateInto: { dx: dx.tensor, adapters: into },
      });
      expect(more.dx).toBe(dx.tensor);
      expect(more.adapters.get(nameOf(0))?.dLoraA).toBe(start.tensor);
      const [sum, added] = [
        await start.tensor.read(),
        await partOf(all, nameOf(0), 'dLoraA').read(),
      ];
      sum.forEach((v, i) => {
        expect(v).toBeCloseTo((start.matrix.data[i] as number) + (added[i] as number), 4);
      });
      const whole = await (all.dx as Tensor).read();
      (await dx.tensor.read()).forEach((v, i) => {
        expect(v).toBeCloseTo((dx.matrix.data[i] as number) + (whole[i] as number), 3);
      });
      for (const name of ['dLoraB', 'dLoraBias'] as const) {
        const parts = [more, all].map((g) => g.adapters.get(nameOf(0))?.[name] as Tensor);
        exact(name, await (parts[0] as Tensor).read(), await (parts[1] as Tensor).read());
      }
    });
  });

  it('one name for each sample of [B, S, K], frozen factors, and training: false', async () => {
    await scope(async () => {
      const c = groupedCase({ M: 6, N: 20, K: 64, ranks: [4, 8] }, spec, 'f32', device, 4);
      const x = Tensor.from(await c.x.read(), [3, 2, 64], { device });
      const names = [nameOf(1), null, nameOf(0)];
      const { y, saved } = c.group.forward(x, c.w, names);
      expect(y.shape).toEqual([3, 2, 20]);
      const flat = c.group.forward(
        c.x,
        c.w,
        names.flatMap((name) => [name, name]),
      );
      exact('y', await y.read(), await flat.y.read());
      const { dx } = c.group.backward(
        Tensor.from(await c.dy.read(), [3, 2, 20], { device }),
        saved,
      );
      expect(dx?.shape).toEqual([3, 2, 64]);

      const [first, second] = c.adapters as [LoraAdapter, LoraAdapter];
      const { LoraAdapter: Adapter } = await import('../../lib/index.js');
      const frozen = new Adapter({ ...parts(first), trainA: false });
      const half = new Adapter({ ...parts(second), trainB: false });
      c.group.update(nameOf(0), frozen);
      c.group.update(nameOf(1), half);
      const some = c.group.forward(x, c.w, names);
      exact('y of frozen', await some.y.read(), await y.read());
      const got = c.group.backward(
        Tensor.from(await c.dy.read(), [3, 2, 20], { device }),
        some.saved,
      );
      expect(Object.keys(got.adapters.get(nameOf(0)) ?? {})).toEqual(['dLoraB']);
      expect(Object.keys(got.adapters.get(nameOf(1)) ?? {})).toEqual(['dLoraA']);

      const off = c.group.forward(x, c.w, names, { training: false });
      expect([off.saved.x, off.saved.h]).toEqual([undefined, undefined]);
      const dy = Tensor.from(await c.dy.read(), [3, 2, 20], { device });
      const plain = c.group.backward(dy, off.saved);
      expect([...plain.adapters]).toEqual([]);
      exact('dx', await (plain.dx as Tensor).read(), await (dx as Tensor).read());
    });
  });

  it("compute: 'int8' is that of loraForward, where there is such a product", async () => {
    if (isCuda(device)) return;
    await scope(async () => {
      const c = groupedCase(
        { M: 5, N: 33, K: 128, ranks: [4, 8], sorted: true },
        spec,
        'f32',
        device,
        2,
      );
      const { y } = c.group.forward(c.x, c.w, c.rows, { compute: 'int8' });
      for (const e of [0, 1]) {
        const index = c.inputs.adapterOf.flatMap((at, m) => (at === e ? [m] : []));
        const single = loraForward(await pick(c.x, index), c.w, c.adapters[e] as LoraAdapter, {
          compute: 'int8',
        });
        exact('y', await (await pick(y, index)).read(), await single.y.read());
      }
    });
  });
});

function parts({ loraA, loraB, loraAlpha, rslora }: LoraAdapter) {
  return { loraA, loraB, loraAlpha, rslora };
}
