// compute: 'int8' on every device: against the rounded operands within the promise of every product,
// against the exact product within the documented bound. Where it is not there: int8-refusals.test.ts.
import { describe, expect, it } from 'vitest';
import { namesOfBits } from '../../lib/core/formats.js';
import {
  type BaseWeight,
  type Device,
  type DType,
  devices,
  GroupedLora,
  LoraAdapter,
  LoraLinear,
  loraExpand,
  loraForward,
  loraForwardMany,
  loraForwardSwiglu,
  matmul,
  type QuantFormat,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { INT8_DEVICES, INT8_ROW_DEVICES } from '../../lib/ops/compute.js';
import {
  add,
  bound,
  dequantiseBlocks,
  exact,
  type Int8Operand,
  int8Error,
  int8Rows,
  int8RowWeight,
  int8Weight,
  loraForward64,
  type Matrix,
  map,
  matmul64,
  matmulInt8,
  matrix,
  nestAbsmax,
  nmse,
  quantiseBlocks,
  unnestAbsmax,
} from '../oracle.js';
import { loraCase } from './lora-case.js';
import { DEVICES, DTYPES, operand, seeded } from './operands.js';

const HERE = DEVICES.filter((device) => INT8_DEVICES.includes(device));
const ROWS_HERE = DEVICES.filter((device) => INT8_ROW_DEVICES.includes(device));

// Rows of w with one scale a block of x, with two and with three; K under, at and over a block, odd,
// and over the blocks of the kernels; M of one register tile and of several.
const SHAPES: readonly (readonly [M: number, N: number, K: number])[] = [
  [1, 1, 1],
  [1, 65, 64],
  [3, 33, 63],
  [17, 63, 65],
  [15, 40, 128],
  [16, 64, 256],
  [65, 14, 172],
  [5, 300, 320],
  [2, 3, 4099],
  [0, 5, 64],
  [3, 4, 0],
];
const BLOCKSIZES = [64, 32, 256] as const;
// Rows of rowwise weights are multiples of 32; K over a step and a block of their kernels, M over their few rows.
const ROW_SHAPES: readonly (readonly [M: number, N: number, K: number])[] = [
  [1, 1, 32],
  [1, 65, 64],
  [3, 33, 96],
  [7, 6, 128],
  [48, 14, 160],
  [49, 70, 1056],
  [130, 33, 64],
  [2, 3, 4128],
  [0, 5, 64],
];

interface Case {
  readonly w: BaseWeight;
  /** The weight as the product of codes sees it. */
  readonly codes: Int8Operand;
  /** The weight decoded in f32. */
  readonly decoded: Matrix;
}

function weightCase(
  format: QuantFormat | 'rowwise',
  doubleQuant: boolean,
  blocksize: number,
  [N, K]: readonly [number, number],
  fill: { seed: number; device: Device },
): Case {
  const dense = operand(N, K, { ...fill, std: 0.5 });
  if (format === 'rowwise') {
    const w = quantize(dense.tensor, { format: 'int8', rowwise: true });
    return { w, ...int8RowWeight(dense.matrix) };
  }
  const w = quantize(dense.tensor, { format, blocksize, doubleQuant });
  const blocks = quantiseBlocks(dense.matrix.data, format, blocksize);
  const absmax = doubleQuant ? unnestAbsmax(nestAbsmax(blocks.absmax)) : blocks.absmax;
  const stored = { ...blocks, absmax };
  return {
    w,
    codes: int8Weight(stored, N, K),
    decoded: matrix(N, K, dequantiseBlocks(stored)),
  };
}

it('the devices that have it say so among their features', () => {
  for (const { device, features } of devices()) {
    expect([device, features.includes('int8Compute'), features.includes('rowInt8Compute')]).toEqual(
      [device, INT8_DEVICES.includes(device), INT8_ROW_DEVICES.includes(device)],
    );
  }
  expect(HERE).toEqual(INT8_DEVICES);
});

const KINDS = [...namesOfBits(4), 'rowwise'] as const;
const CASES = DTYPES.flatMap((dtype) =>
  KINDS.flatMap((format) =>
    (format === 'rowwise' ? ROWS_HERE : HERE).flatMap((device) =>
      (format === 'rowwise' ? [false] : [false, true]).map((doubleQuant) => ({
        device,
        dtype,
        format,
        doubleQuant,
      })),
    ),
  ),
);

describe.each(CASES)('$device, $dtype x, $format, double $doubleQuant', (variant) => {
  const { device, dtype, format, doubleQuant } = variant;
  const byRows = format === 'rowwise';
  const rowsOf = (x: Matrix): Int8Operand => int8Rows(x, byRows ? Math.max(x.cols, 1) : undefined);

  it('is the product of codes, and near the exact one', async () => {
    for (const [index, [M, N, K]] of (byRows ? ROW_SHAPES : SHAPES).entries()) {
      for (const blocksize of byRows ? [32] : BLOCKSIZES) {
        const name = `y [${M}, ${N}, ${K}] blocks of ${blocksize}`;
        await scope(async () => {
          const fill = (i: number) => ({ seed: seeded(index, i), device });
          const x = operand(M, K, { ...fill(1), dtype });
          const { w, codes, decoded } = weightCase(format, doubleQuant, blocksize, [N, K], fill(2));
          const bias = index % 2 ? undefined : operand(1, N, { ...fill(3), shape: [N] });
          const options = bias === undefined ? {} : { bias: bias.tensor };
          const y = await matmul(x.tensor, w, { ...options, compute: 'int8' }).read();
          const rows = rowsOf(x.matrix);
          bound(name, y, matmulInt8(rows, codes, bias?.matrix), { dtype });
          const error = int8Error(rows, codes, decoded);
          // The bound has a bias's rounding in that of the output.
          const slack = (i: number): number => error.data[i] as number;
          const truth = matmul64(x.matrix, decoded, bias?.matrix);
          bound(`${name} against exact`, y, truth, { dtype, c: bias ? 1 : 0, slack });
        });
      }
    }
  });

  it('loraForward adds the adapter in f32', async () => {
    for (const [index, shape] of [
      { M: 17, N: 70, K: byRows ? 192 : 200, r: 5 },
      { M: 1, N: 33, K: 96, r: 16 },
      { M: 60, N: 15, K: byRows ? 64 : 63, r: 1 },
    ].entries()) {
      await scope(async () => {
        const form = { bias: true, loraBias: true, dropout: 0.25 };
        const base = byRows ? 'nf4' : format; // its x and adapter are what is asked for
        const spec = { name: base, format: base, doubleQuant };
        const seed = index + 5;
        const test = loraCase(shape, form, spec, dtype, device, seed);
        const { w, codes } = weightCase(format, doubleQuant, 64, [shape.N, shape.K], {
          seed: seeded(seed, 3),
          device,
        });
        const { y } = loraForward(test.x, w, test.adapter, { ...test.options, compute: 'int8' });
        // The adapter's part is that of the exact layer less its base.
        const product = matmulInt8(rowsOf(test.inputs.x), codes);
        const none = { ...test.inputs, w: map(test.inputs.w, () => 0) };
        const rest = loraForward64(none);
        const expected = { value: add(product.value, rest.value), p: add(product.p, rest.p) };
        bound(`y ${test.name}`, await y.read(), expected, { dtype });
      });
    }
  });
});

describe.each(HERE)('int8 on %s', (device) => {
  const parts = (dtype: DType, M: number, N: number, K: number) => {
    const x = operand(M, K, { seed: 1, dtype, device });
    return { x, ...weightCase('nf4', false, 64, [N, K], { seed: 2, device }) };
  };

  it('is an option: without it, and as exact, the bits are the same as ever', async () => {
    await scope(async () => {
      const { x, w } = parts('bf16', 5, 40, 192);
      const plain = await matmul(x.tensor, w).read();
      exact('exact', await matmul(x.tensor, w, { compute: 'exact' }).read(), plain);
      const coded = await matmul(x.tensor, w, { compute: 'int8' }).read();
      expect([...coded]).not.toEqual([...plain]);
    });
  });

  it('is off by what two roundings to 8 bits cost, on normal values', async () => {
    await scope(async () => {
      const { x, w, decoded } = parts('f32', 32, 64, 1024);
      const y = await matmul(x.tensor, w, { compute: 'int8' }).read();
      const truth = matmul64(x.matrix, decoded).value.data;
      const error = Math.sqrt(nmse('y', y, truth, 0.01 ** 2));
      console.info(`int8 against exact: ${(100 * error).toFixed(2)} % on ${device}`);
      expect(error).toBeGreaterThan(0.004);
    });
  });

  it('a row is the same alone and in a batch', async () => {
    await scope(async () => {
      const { x, w } = parts('f32', 33, 70, 200);
      const all = await matmul(x.tensor, w, { compute: 'int8' }).read();
      for (const m of [0, 13, 32]) {
        const row = Tensor.from(x.matrix.data.slice(m * 200, (m + 1) * 200), [1, 200], { device });
        const alone = await matmul(row, w, { compute: 'int8' }).read();
        exact(`row ${m}`, alone, all.slice(m * 70, (m + 1) * 70));
      }
    });
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    '%d in x makes its row NaN, and no other',
    async (value) => {
      await scope(async () => {
        for (const [M, N, K] of [
          [4, 33, 65],
          [20, 5, 172],
        ] as const) {
          const { x, w } = parts('f32', M, N, K);
          for (const at of [0, M * K - 1, K]) {
            const data = Float32Array.from(x.matrix.data);
            data[at] = value;
            const poked = Tensor.from(data, [M, K], { device });
            const y = await matmul(poked, w, { compute: 'int8' }).read();
            const row = Math.floor(at / K);
            const expected = Array.from(y, (_, i) => Math.floor(i / N) === row);
            expect(Array.from(y, Number.isNaN)).toEqual(expected);
            expect(y.every((v, i) => expected[i] || Number.isFinite(v))).toBe(true);
          }
        }
      });
    },
  );

  it('zeros, and blocks whose scale is a denormal or zero', async () => {
    await scope(async () => {
      const { w, codes, decoded } = parts('f32', 1, 9, 128);
      const tiny = matrix(
        3,
        128,
        Array.from({ length: 384 }, (_, i) =>
          i < 128 ? 0 : i < 256 ? 2 ** -149 * (i % 200) : 2 ** -130 * (i % 7),
        ),
      );
      const y = await matmul(Tensor.from([...tiny.data], [3, 128], { device }), w, {
        compute: 'int8',
      }).read();
      expect([...y.slice(0, 9)].every((value) => value === 0)).toBe(true);
      // What a denormal scale loses: half of itself and of the last place, 127 times.
      const lost = (i: number): number =>
        128 * 128 * 2 ** -149 + (int8Error(int8Rows(tiny), codes, decoded).data[i] as number);
      const truth = matmul64(tiny, decoded);
      const why = { mostlyZeros: 'a row of zeros on purpose' };
      bound('tiny', y, truth, { c: 0, slack: lost, ...why });
    });
  });

  it('takes weights of both kinds side by side, and many adapters', async () => {
    await scope(async () => {
      for (const M of [5, 60]) {
        const x = operand(M, 128, { seed: 1, dtype: 'bf16', device }).tensor;
        const weights = (['nf4', 'rowwise', 'rowwise', 'int4'] as const).map(
          (format, i) => weightCase(format, false, 64, [20 + i, 128], { seed: 3 + i, device }).w,
        );
        const { ys } = loraForwardMany(
          x,
          weights.map((w) => ({ w, compute: 'int8' })),
        );
        for (const [i, w] of weights.entries()) {
          const single = await matmul(x, w, { compute: 'int8' }).read();
          exact(`projection ${i}`, await (ys[i] as Tensor).read(), single);
        }
        const adapter = new LoraAdapter({
          loraA: Tensor.randn([4, 128], { seed: 7, device }),
          loraB: Tensor.randn([21, 4], { seed: 8, device }),
          loraAlpha: 8,
        });
        const group = new GroupedLora({ inFeatures: 128, outFeatures: 21, device });
        group.add('one', adapter);
        const w = weights[1] as BaseWeight;
        const grouped = group.forward(x, w, new Array(M).fill('one'), { compute: 'int8' });
        const { y } = loraForward(x, w, adapter, { compute: 'int8' });
        const [mine, single] = [await grouped.y.read(), await y.read()];
        mine.forEach((v, i) => {
          const other = single[i] as number;
          expect(Math.abs(v - other)).toBeLessThanOrEqual(2 ** -7 * Math.max(1, Math.abs(other)));
        });
      }
    });
  });

  it('LoraLinear takes it for the layer or for a call', async () => {
    await scope(async () => {
      const { x, w } = parts('f32', 3, 20, 128);
      const plain = new LoraLinear({ weight: w });
      const coded = new LoraLinear({ weight: w, compute: 'int8' });
      const expected = await matmul(x.tensor, w, { compute: 'int8' }).read();
      exact('layer', await coded.forward(x.tensor).read(), expected);
      exact('call', await plain.forward(x.tensor, { compute: 'int8' }).read(), expected);
      const back = await coded.forward(x.tensor, { compute: 'exact' }).read();
      exact('back', back, await matmul(x.tensor, w).read());
    });
  });
});

describe.each(ROWS_HERE)('int8 of a rowwise weight on %s', (device) => {
  const rowsOf = (dtype: DType, M: number, N: number, K: number) => {
    const x = operand(M, K, { seed: 31, dtype, device });
    return { x, ...weightCase('rowwise', false, 64, [N, K], { seed: 32, device }) };
  };

  it.each(DTYPES)('of %s x has the bits of the CPU, alone and in a batch', async (dtype) => {
    for (const [M, N, K] of [
      [1, 70, 96],
      [33, 72, 1056],
      [70, 65, 160],
    ] as const) {
      await scope(async () => {
        const { x, w } = rowsOf(dtype, M, N, K);
        const bias = operand(1, N, { seed: 33, device, shape: [N] });
        const all = await matmul(x.tensor, w, { bias: bias.tensor, compute: 'int8' }).read();
        const there = weightCase('rowwise', false, 64, [N, K], { seed: 32, device: 'cpu' });
        const y = matmul(operand(M, K, { seed: 31, dtype, device: 'cpu' }).tensor, there.w, {
          bias: operand(1, N, { seed: 33, device: 'cpu', shape: [N] }).tensor,
          compute: 'int8',
        });
        // The reference adds in double.
        if (device !== 'reference') exact(`[${M}, ${N}, ${K}]`, all, await y.read());
        for (const m of [0, M - 1]) {
          const values = x.matrix.data.slice(m * K, (m + 1) * K);
          const row = Tensor.from(values, [1, K], { dtype, device });
          const alone = matmul(row, w, { bias: bias.tensor, compute: 'int8' });
          exact(`row ${m}`, await alone.read(), all.slice(m * N, (m + 1) * N));
        }
      });
    }
  });

  it('adds up to 2^17 products of the largest codes', async () => {
    await scope(async () => {
      const [N, K] = [3, 2 ** 17];
      const signs = [1, -1, 1].map((sign) => new Array<number>(K).fill(sign));
      const x = Tensor.from(signs.slice(0, 2).flat(), [2, K], { device });
      const dense = Tensor.from(signs.flat(), [N, K], { device });
      const w = quantize(dense, { format: 'int8', rowwise: true });
      const y = await matmul(x, w, { compute: 'int8' }).read();
      const one = Math.fround(1 / 127);
      const sum = 127 * 127 * K * Math.fround(one * one);
      for (const [i, sign] of [1, -1, 1, -1, 1, -1].entries()) {
        expect(Math.abs((y[i] as number) / (sign * sum) - 1)).toBeLessThan(2 ** -22);
      }
    });
  });

  it('NaN and infinities make their row NaN, zeros and tiny values make none', async () => {
    for (const [M, N, K] of [
      [4, 33, 64],
      [70, 5, 160],
    ] as const) {
      await scope(async () => {
        const { x, w } = rowsOf('f32', M, N, K);
        const data = Float32Array.from(x.matrix.data);
        data[1] = Number.NaN;
        data[3 * K - 1] = Number.NEGATIVE_INFINITY;
        for (let k = 0; k < K; k++) {
          data[K + k] = 0;
          data[3 * K + k] = 2 ** -149 * (k % 200);
        }
        const y = await matmul(Tensor.from(data, [M, K], { device }), w, {
          compute: 'int8',
        }).read();
        const rows = Array.from(y, (_, i) => Math.floor(i / N));
        expect(Array.from(y, Number.isNaN)).toEqual(rows.map((m) => m === 0 || m === 2));
        expect(y.slice(N, 2 * N).every((value) => value === 0)).toBe(true);
      });
    }
  });

  it('many projections, the halves of a layer and a group of adapters are that product', async () => {
    for (const [M, dtype] of [
      [5, 'bf16'],
      [70, 'f32'],
      [40, 'f16'],
    ] as const) {
      await scope(async () => {
        const [N, K] = [72, 160];
        const { x, w } = rowsOf(dtype, M, N, K);
        const at = { seed: 41, device };
        const adapter = new LoraAdapter({
          loraA: Tensor.randn([5, K], at),
          loraB: Tensor.randn([N, 5], { ...at, seed: 42 }),
          loraAlpha: 10,
        });
        const options = { compute: 'int8' } as const;
        const { y, saved } = loraForward(x.tensor, w, adapter, options);
        const layer = await y.read();
        const base = await matmul(x.tensor, w, options).read();
        const many = loraForwardMany(x.tensor, [
          { w, ...options },
          { w, adapter, ...options },
        ]).ys;
        exact('of many, the base', await (many[0] as Tensor).read(), base);
        exact('of many, the layer', await (many[1] as Tensor).read(), layer);
        const half = { ...options, scaling: adapter.scaling };
        const expanded = loraExpand(x.tensor, w, saved.h as Tensor, adapter.loraB, half);
        exact('expand', await expanded.read(), layer);
        const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
        group.add('one', adapter);
        const grouped = group.forward(x.tensor, w, new Array(M).fill('one'), options);
        const mine = await grouped.y.read();
        mine.forEach((v, i) => {
          const other = layer[i] as number;
          expect(Math.abs(v - other)).toBeLessThanOrEqual(2 ** -7 * Math.max(1, Math.abs(other)));
        });
        const gated = loraForwardSwiglu(x.tensor, { w, adapter, ...options }, { w, ...options });
        exact('gate', await (gated.saved.gate as Tensor).read(), layer);
        exact('up', await (gated.saved.up as Tensor).read(), base);
      });
    }
  });
});
