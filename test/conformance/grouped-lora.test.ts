// GroupedLora: within c · u · P of float64 formulas that take entry by entry; what is asked for, and what is
// frozen. Sizes and orders are swept by grouped-sweep.test.ts.
import { describe, expect, it } from 'vitest';
import {
  type DType,
  dequantize,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  type QuantizedWeight,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { exact } from '../oracle.js';
import { type GroupedShape, groupedCase, nameOf } from './grouped-case.js';
import { checkBounds, PARTS, partOf, pick } from './grouped-checks.js';
import {
  DEVICES,
  DTYPES,
  FULL_SWEEP,
  mixes,
  operand,
  WEIGHTS,
  type WeightSpec,
} from './operands.js';

const GATED = { rowScale: true, loraBias: true, bias: true, nullEvery: 4 } as const;
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
  { M: 5, N: 600, K: 24, ranks: [4, 3], rowScale: true, loraBias: true, gateType: 'bf16' },
  { M: 0, N: 6, K: 10, ranks: [4, 2], slots: 2, rowScale: true },
  { M: 1, N: 3, K: 5, ranks: [2, 4], slots: 2 },
  { M: 9, N: 33, K: 65, ranks: [4, 16, 7], slots: 4, rowScale: true, dropout: 0.25, bias: true },
  { M: 37, N: 40, K: 300, ranks: [5, 5, 8, 3, 1, 9], slots: 3, ...GATED, gateType: 'bf16' },
  { M: 70, N: 13, K: 33, ranks: [300, 1], slots: 2, nullEvery: 7, rowScale: true, gateType: 'f16' },
  { M: 21, N: 24, K: 16, ranks: [2, 3, 2], slots: 2, loraBias: true, bias: true, sameDType: true },
];
const SPECS = WEIGHTS.filter(({ name }) => /^dense|^nf4 with/.test(name));
/** Off the CPU a dense weight of another dtype is rounded before it meets x: a sample has none but f32. */
const isSampled = ({ dense }: WeightSpec, dtype: DType): boolean =>
  dense === undefined || dense === dtype || (dense === 'f32' && dtype === 'bf16');
const GROUPS = DEVICES.flatMap((device) =>
  DTYPES.flatMap((dtype) =>
    SPECS.filter(
      (spec) => mixes(spec, dtype) && (FULL_SWEEP || device === 'cpu' || isSampled(spec, dtype)),
    ).map((spec) => ({ device, dtype, spec })),
  ),
);

describe.each(GROUPS)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  it('forward and every gradient', async () => {
    for (const [index, shape] of CASES.entries()) {
      await scope(async () => {
        await checkBounds(groupedCase(shape, spec, dtype, device, index + 1), dtype);
      });
    }
  });
});

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

  it('returns what it adds to, also that of adapters without rows in the batch', async () => {
    await scope(async () => {
      const c = groupedCase({ M: 4, N: 20, K: 64, ranks: [4, 8] }, spec, 'f32', device, 3);
      const rows = [nameOf(0), null, nameOf(0), null];
      const { saved } = c.group.forward(c.x, c.w, rows);
      const start = operand(8, 64, { seed: 8, device });
      const other = operand(20, 4, { seed: 9, device });
      const adapters = new Map([
        [nameOf(0), { dLoraB: other.tensor }],
        [nameOf(1), { dLoraA: start.tensor }],
      ]);
      const { adapters: sums } = c.group.backward(c.dy, saved, { accumulateInto: { adapters } });
      expect(sums.get(nameOf(0))?.dLoraB).toBe(other.tensor);
      expect(Object.keys(sums.get(nameOf(0)) ?? {})).toContain('dLoraA');
      expect(sums.get(nameOf(1))?.dLoraA).toBe(start.tensor);
      exact('untouched', await start.tensor.read(), start.matrix.data);
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
      const frozen = new LoraAdapter({ ...parts(first), trainA: false });
      const half = new LoraAdapter({ ...parts(second), trainB: false });
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
    await scope(async () => {
      const c = groupedCase(
        { M: 5, N: 33, K: 128, ranks: [4, 8], sorted: true },
        spec,
        'f32',
        device,
        2,
      );
      // Of a rowwise weight on a CUDA device, where the adapter is added by another kernel.
      const w = isCuda(device)
        ? quantize(dequantize(c.w as QuantizedWeight), { format: 'int8', rowwise: true })
        : c.w;
      const { y } = c.group.forward(c.x, w, c.rows, { compute: 'int8' });
      for (const e of [0, 1]) {
        const index = c.inputs.adapterOf.flatMap((at, m) => (at === e ? [m] : []));
        const single = loraForward(await pick(c.x, index), w, c.adapters[e] as LoraAdapter, {
          compute: 'int8',
        });
        const [got, expected] = [await (await pick(y, index)).read(), await single.y.read()];
        if (!isCuda(device)) exact('y', got, expected);
        got.forEach((v, i) => {
          const other = expected[i] as number;
          // Tensor cores, of which the single call's h is, cut off up to 1.25 · K of 2^-24.
          const near = (isCuda(device) ? 2 ** -17 : 2 ** -20) * Math.max(1, Math.abs(other));
          expect(Math.abs(v - other)).toBeLessThanOrEqual(near);
        });
      }
    });
  });
});

function parts({ loraA, loraB, loraAlpha, rslora }: LoraAdapter) {
  return { loraA, loraB, loraAlpha, rslora };
}
