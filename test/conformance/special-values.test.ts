// NaN, infinities, denormals and overflow: where IEEE 754 puts them in the float64 product, and
// nowhere else. Tiles are padded inside the kernels, and 0 · ∞ of a padding would show here.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  devices,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { source } from '../oracle/inputs.js';
import { bound, exact, type Matrix, map, matmul64, matmulInputGrad64, matrix } from '../oracle.js';
import { DEVICES, DTYPES, operand, tensorOf, WEIGHTS, weightOperand } from './operands.js';

const CASES = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));
const INFINITY = Number.POSITIVE_INFINITY;

const isaOf = (device: string): string => devices().find((row) => row.device === device)?.isa ?? '';

/** `values` with one element replaced. */
const poke = (values: Matrix, index: number, value: number): Matrix =>
  map(values, (old, i) => (i === index ? value : old));

describe.each(CASES)('$device, $dtype', ({ device, dtype }) => {
  const shapes = [
    [5, 33, 31],
    [65, 15, 65],
    [1, 63, 172],
  ] as const;

  it.each([Number.NaN, INFINITY, -INFINITY])('one %d in x or dy touches one row', async (value) => {
    for (const [M, N, K] of shapes) {
      for (const spec of WEIGHTS.filter((s) => s.dense === dtype || s.format !== undefined)) {
        await scope(async () => {
          const x = operand(M, K, { seed: 1, dtype, device });
          const dy = operand(M, N, { seed: 2, dtype, device });
          const { w, matrix: values } = weightOperand(spec, N, K, dtype, { seed: 3, device });
          for (const at of [0, M * K - 1, Math.floor((M * K) / 2)]) {
            const poked = poke(x.matrix, at, value);
            const y = await matmul(tensorOf(poked, { dtype, device }), w).read();
            const name = `${spec.name} [${M}, ${N}, ${K}] x[${at}]`;
            bound(`y ${name}`, y, matmul64(poked, values), { dtype });
          }
          for (const at of [0, M * N - 1]) {
            const poked = poke(dy.matrix, at, value);
            const dx = await matmulInputGrad(tensorOf(poked, { dtype, device }), w).read();
            bound(`dx ${spec.name} dy[${at}]`, dx, matmulInputGrad64(poked, values), { dtype });
          }
        });
      }
    }
  });

  it('NaN in a dense weight, a bias or a factor touches what depends on it', async () => {
    await scope(async () => {
      const [M, N, K, r] = [9, 21, 35, 3];
      const x = operand(M, K, { seed: 1, dtype, device });
      const w = operand(N, K, { seed: 2, dtype, device });
      const nan = (rows: number, cols: number, at: number): Tensor =>
        tensorOf(poke(operand(rows, cols, { seed: 4, device }).matrix, at, Number.NaN), { device });
      const columns = (y: Float32Array): number[] =>
        Array.from({ length: N }, (_, n) => n).filter((n) => Number.isNaN(y[n] as number));
      const wNan = tensorOf(poke(w.matrix, 4 * K + 34, Number.NaN), { dtype, device });
      expect(columns(await matmul(x.tensor, wNan).read())).toEqual([4]);
      const bias = nan(1, N, 20);
      expect(columns(await matmul(x.tensor, w.tensor, { bias }).read())).toEqual([20]);
      const adapter = new LoraAdapter({
        loraA: operand(r, K, { seed: 5, device }).tensor,
        loraB: nan(N, r, 7 * r + 1),
        loraAlpha: 1,
      });
      expect(columns(await loraForward(x.tensor, w.tensor, adapter).y.read())).toEqual([7]);
    });
  });

  it('a dropped element is zero to the adapter, whatever it held', async () => {
    await scope(async () => {
      const [M, N, K, r] = [3, 5, 40, 4];
      const mask = matrix(
        M,
        K,
        Array.from({ length: M * K }, (_, i) => (i === 50 ? 0 : 1)),
      );
      const clean = operand(M, K, { seed: 1, dtype, device }).matrix;
      const at = { dtype, device };
      const adapter = new LoraAdapter({
        loraA: operand(r, K, { seed: 5, device }).tensor,
        loraB: operand(N, r, { seed: 6, device }).tensor,
        loraAlpha: 1,
        dropout: 0.5,
      });
      const w = operand(N, K, { seed: 2, dtype, device }).tensor;
      const run = async (x: Matrix): Promise<[Float32Array, Float32Array]> => {
        const dropoutMask = tensorOf(mask, { device });
        const { saved } = loraForward(tensorOf(x, at), w, adapter, { dropoutMask });
        const h = await (saved.h as Tensor).read();
        const dy = operand(M, N, { seed: 7, dtype, device }).tensor;
        const { dLoraA } = loraBackward(dy, saved, { needs: ['dLoraA'] });
        return [h, await (dLoraA as Tensor).read()];
      };
      const [h, dLoraA] = await run(poke(clean, 50, 0));
      for (const value of [Number.NaN, INFINITY]) {
        const [h2, dLoraA2] = await run(poke(clean, 50, value));
        exact(`h with ${value} dropped`, h2, h);
        exact(`dLoraA with ${value} dropped`, dLoraA2, dLoraA);
      }
    });
  });

  it('overflow gives infinity of the right sign', async () => {
    await scope(async () => {
      const large = { f32: 2 ** 100, bf16: 2 ** 100, f16: 2 ** 14 }[dtype];
      const x = matrix(3, 33, new Float64Array(99).fill(large));
      const w = matrix(
        2,
        33,
        Array.from({ length: 66 }, (_, i) => (i < 33 ? large : -large)),
      );
      const at = { dtype, device };
      const y = await matmul(tensorOf(x, at), tensorOf(w, at)).read();
      expect([...y]).toEqual([INFINITY, -INFINITY, INFINITY, -INFINITY, INFINITY, -INFINITY]);
    });
  });
});

describe.each(DEVICES)('denormals on %s', (device) => {
  it('are added and stored exactly in f32', async () => {
    await scope(async () => {
      const from = source(3);
      const unit = 2 ** -149;
      const x = matrix(
        5,
        37,
        Array.from({ length: 185 }, () => unit * from.integer(1, 1000)),
      );
      const w = matrix(
        9,
        37,
        Array.from({ length: 333 }, () => (from.uniform() < 0.5 ? -1 : 1)),
      );
      const y = await matmul(tensorOf(x, { device }), tensorOf(w, { device })).read();
      exact('y', y, matmul64(x, w).value.data);
      const dx = matmulInputGrad(
        tensorOf(x, { device }),
        Tensor.from([...w.data], [37, 9], { device }),
      );
      expect((await dx.read()).some((value) => value !== 0)).toBe(true);
    });
  });

  it.each(['bf16', 'f16'] as const)('of %s are values like any other', async (dtype) => {
    await scope(async () => {
      const from = source(4);
      const unit = dtype === 'bf16' ? 2 ** -133 : 2 ** -24;
      const x = matrix(
        5,
        37,
        Array.from({ length: 185 }, () => unit * from.integer(1, 100)),
      );
      const w = matrix(
        9,
        37,
        Array.from({ length: 333 }, () => (from.uniform() < 0.3 ? -1 : 1)),
      );
      const at = { dtype, device };
      const y = await matmul(tensorOf(x, at), tensorOf(w, at)).read();
      // The bf16 dot product instructions take bf16 denormals for zeros, and no mode changes that:
      // each product may lose all of a value below 2^-126.
      const flushes = dtype === 'bf16' && /bf16|amx/.test(isaOf(device));
      const slack = flushes ? 37 * 2 ** -126 : 0;
      bound('y', y, matmul64(x, w), { dtype, slack: () => slack });
    });
  });

  it('survive in JavaScript after any op (no flush-to-zero leaks out of a kernel)', async () => {
    await scope(async () => {
      const x = Tensor.randn([33, 70], { seed: 1, device });
      const w = quantize(Tensor.randn([40, 70], { seed: 2, device }), { format: 'nf4' });
      await matmul(x, w).read();
      await dequantize(w).read();
      const one = Number(process.argv.length > 0);
      expect(Number.MIN_VALUE / one).toBe(5e-324);
      expect(Math.fround(1e-40)).not.toBe(0);
      expect((0.1 + 0.2) * one).toBe(0.30000000000000004);
    });
  });
});
