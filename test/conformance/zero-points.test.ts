// int4 weights with zero-points on every device: codes and values as min-max rounding defines them, products and
// gradients against float64, every op that takes a weight against the same op over the dequantised one.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  type Device,
  type DType,
  denseRows,
  dequantize,
  factoredNorm,
  GroupedLora,
  LoraAdapter,
  loraBackward,
  loraBackwardMany,
  loraExpand,
  loraForward,
  loraForwardMany,
  loraShrinkBackward,
  matmul,
  matmulInputGrad,
  memoryUsage,
  mergeLora,
  QuantizedWeight,
  quantize,
  scope,
  synchronize,
  Tensor,
  unmergeLora,
  weightNorms,
} from '../../lib/index.js';
import { normalMatrix } from '../oracle/inputs.js';
import type { Bounded } from '../oracle/linear.js';
import {
  codebookOf,
  encodeNormalised,
  exact,
  type Matrix,
  map,
  matmul64,
  matmulInputGrad64,
  matrix,
  roundTo,
  ulp,
} from '../oracle.js';
import { DEVICES, DTYPES, operand, tensorOf } from './operands.js';

const LEVELS = codebookOf('int4');
const affine = { format: 'int4', blocksize: 32, zeroPoints: true } as const;

/** Rows whose blocks lie away from 0, so that a zero-point forgotten or of another block shows. */
const shifted = (N: number, K: number, seed: number): Matrix =>
  map(normalMatrix(N, K, seed, 0.3), (v, i) =>
    Math.fround(v + 2 * Math.cos(3 * Math.floor(i / 32) + 0.5)),
  );

interface Affine {
  readonly codes: number[];
  readonly absmax: number[];
  readonly zeroPoints: number[];
}

/** Min-max rounding, from its definition; f32 where the library stores f32. */
function minMax(values: ArrayLike<number>, blocksize: number): Affine {
  const f32 = Math.fround;
  const made: Affine = { codes: [], absmax: [], zeroPoints: [] };
  for (let begin = 0; begin < values.length; begin += blocksize) {
    const block = Array.from({ length: blocksize }, (_, i) => values[begin + i] as number);
    const middle = f32((Math.min(...block) + Math.max(...block)) / 2);
    const centred = block.map((v) => f32(v - middle));
    const absmax = Math.max(...centred.map(Math.abs));
    const inverse = f32(1 / absmax);
    made.zeroPoints.push(middle);
    made.absmax.push(absmax);
    for (const v of centred) {
      made.codes.push(Number.isFinite(inverse) ? encodeNormalised('int4', f32(v * inverse)) : 8);
    }
  }
  return made;
}

/** The values that a product of activations in `dtype` uses: codes rounded to it, zero-points not. */
function decoded({ codes, absmax, zeroPoints }: Affine, blocksize: number, dtype: DType) {
  return codes.map((code, i) => {
    const block = Math.floor(i / blocksize);
    const value = Math.fround((LEVELS[code] as number) * (absmax[block] as number));
    return roundTo(dtype, value) + (zeroPoints[block] as number);
  });
}

/** |mine − expected| ≤ 16 · 2^-24 · P, and half a step of the result and of what was rounded before it. */
function close(
  name: string,
  mine: ArrayLike<number>,
  { value, p }: Bounded,
  dtype: DType,
  rounded?: Matrix,
) {
  expect(mine.length).toBe(value.data.length);
  for (let i = 0; i < mine.length; i++) {
    const [v, sum] = [value.data[i] as number, 16 * 2 ** -24 * (p.data[i] as number)];
    const steps = rounded === undefined ? [v] : [v, rounded.data[i] as number];
    const bound = steps.reduce((all, step) => all + sum + ulp(dtype, Math.abs(step) + sum) / 2, 0);
    const error = Math.abs((mine[i] as number) - v);
    if (!(error <= bound)) {
      throw new Error(`${name}[${i}]: ${mine[i]} for ${v}, beyond ${bound}`);
    }
  }
}

describe.each(DEVICES)('a weight with zero-points on %s', (device) => {
  it.each(DTYPES)(
    'has the codes, zero-points and values of min-max rounding, from %s',
    async (dtype) => {
      await scope(async () => {
        const given = map(shifted(5, 96, 1), (v) => roundTo(dtype, v));
        // A block of one value, a block of zeros, an outlier.
        given.data.fill(0.75, 32, 64);
        given.data.fill(0, 96, 128);
        given.data[130] = 64;
        const w = quantize(tensorOf(given, { dtype, device }), affine);
        const expected = minMax(given.data, 32);
        exact('zero-points', (await w.zeroPoints?.read()) as Float32Array, expected.zeroPoints);
        const values = expected.codes.map((code, i) => {
          const block = Math.floor(i / 32);
          const level = Math.fround((LEVELS[code] as number) * (expected.absmax[block] as number));
          return roundTo(dtype, Math.fround(level + (expected.zeroPoints[block] as number)));
        });
        exact(
          'values',
          Float64Array.from(await dequantize(w).read(), (v) => v + 0),
          values,
        );
        exact('rows', await denseRows(w, 2, 4, { dtype }).read(), values.slice(2 * 96, 4 * 96));
        const { codes } = await w.toGroupAffine();
        const flat = (i: number) => expected.absmax[Math.floor(i / 32)] === 0;
        exact(
          'codes',
          codes.map((c, i) => (flat(i) ? 0 : c)),
          expected.codes.map((c, i) => (flat(i) ? 0 : c)),
        );
        expect([w.format, w.blocksize, w.sourceDType]).toEqual(['int4', 32, dtype]);
        expect(w.byteLength).toBe((5 * 96) / 2 + 16 * 4 + 2 * 15 * 4);
      });
    },
  );

  it.each(DTYPES)('has the products and input gradients of its values, in %s', async (dtype) => {
    for (const [M, N, K, blocksize] of [
      [1, 7, 64, 32],
      [3, 33, 256, 64],
      [70, 65, 160, 32],
      [0, 4, 32, 32],
    ] as const) {
      await scope(async () => {
        const given = shifted(N, K, K + N);
        const w = quantize(tensorOf(given, { device }), { ...affine, blocksize });
        const parts = minMax(given.data, blocksize);
        const values = matrix(N, K, decoded(parts, blocksize, dtype));
        const zeroPoints = parts.zeroPoints.map(() => 0);
        const codes = matrix(N, K, decoded({ ...parts, zeroPoints }, blocksize, dtype));
        const x = operand(M, K, { seed: 2, dtype, device });
        const bias = operand(1, N, { seed: 3, device, shape: [N] });
        const y = matmul(x.tensor, w, { bias: bias.tensor });
        expect(y.dtype).toBe(dtype);
        close('y', await y.read(), matmul64(x.matrix, values, bias.matrix), dtype);
        const dy = operand(M, N, { seed: 4, dtype, device });
        const dx = await matmulInputGrad(dy.tensor, w).read();
        // The codes' part is rounded before the zero-points' is added.
        const part = matmulInputGrad64(dy.matrix, codes).value;
        close('dx', dx, matmulInputGrad64(dy.matrix, values), dtype, part);
      });
    }
  });

  it('is a base as its values are: LoRA, its halves, several projections, groups, norms', async () => {
    await scope(async () => {
      const [M, N, K, r] = [6, 40, 64, 4];
      const w = quantize(tensorOf(shifted(N, K, 9), { device }), affine);
      const adapter = new LoraAdapter({
        loraA: operand(r, K, { seed: 5, device }).tensor,
        loraB: operand(N, r, { seed: 6, device }).tensor,
        loraBias: operand(1, N, { seed: 7, device, shape: [N] }).tensor,
        loraAlpha: 6,
        dropout: 0.3,
      });
      const { loraA, loraB } = adapter;
      const x = operand(M, K, { seed: 8, device }).tensor;
      const dy = operand(M, N, { seed: 10, device }).tensor;
      const h = operand(M, r, { seed: 11, device }).tensor;
      const bias = operand(1, N, { seed: 12, device, shape: [N] }).tensor;
      const other = operand(N, K, { seed: 13, device }).tensor;
      const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
      const plain = new LoraAdapter({ loraA, loraB, loraAlpha: 2 });
      group.add('a', plain);
      const run = (base: QuantizedWeight | Tensor): Record<string, Tensor> => {
        const into = operand(M, K, { seed: 14, device }).tensor;
        const once = loraForward(x, base, adapter, { seed: 3, bias });
        const all = loraBackward(dy, once.saved, { accumulateInto: { dx: into } });
        const bare = loraForward(x, base, plain, { training: false });
        const many = loraForwardMany(x, [
          { w: base, adapter, seed: 4, bias },
          { w: other },
          { w: base },
        ]);
        const back = loraBackwardMany([dy, dy, dy], many.saved);
        const rows = Array.from({ length: M }, (_, i) => (i % 3 === 0 ? null : 'a'));
        const grouped = group.forward(x, base, rows, { bias });
        const ungrouped = group.backward(dy, grouped.saved);
        const target = operand(M, K, { seed: 15, device }).tensor;
        const needs = ['dx'] as const;
        const options = { scaling: 2, needs };
        const shrunk = loraShrinkBackward(dy, base, h, loraA, options);
        const added = loraShrinkBackward(dy, base, h, loraA, {
          ...options,
          accumulateInto: { dx: target },
        });
        expect([all.dx === into, added.dx === target]).toEqual([true, true]);
        return {
          y: once.y,
          ...all,
          bare: bare.y,
          q: many.ys[0] as Tensor,
          k: many.ys[1] as Tensor,
          v: many.ys[2] as Tensor,
          manyDx: back.dx as Tensor,
          manyA: back.gradients[0]?.dLoraA as Tensor,
          manyB: back.gradients[0]?.dLoraB as Tensor,
          grouped: grouped.y,
          groupedDx: ungrouped.dx as Tensor,
          groupedB: ungrouped.adapters.get('a')?.dLoraB as Tensor,
          expanded: loraExpand(x, base, h, loraB, { scaling: 3, bias }),
          shrunk: shrunk.dx as Tensor,
          added: added.dx as Tensor,
          norms: weightNorms(base),
          factored: factoredNorm({ w: base, loraA, loraB, scaling: 1.5 }),
        };
      };
      const [mine, expected] = [run(w), run(dequantize(w, { dtype: 'f32' }))];
      expect(Object.keys(mine)).toHaveLength(21);
      for (const [name, tensor] of Object.entries(mine)) {
        const other = (await expected[name]?.read()) as Float32Array;
        const size = other.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        (await tensor.read()).forEach((v, i) => {
          const error = Math.abs(v - (other[i] as number));
          if (!(error <= 1e-5 * size)) throw new Error(`${name}[${i}]: ${v} for ${other[i]}`);
        });
      }
    });
  });

  it('is merged into codes, and out of them', async () => {
    await scope(async () => {
      const [N, K, r] = [24, 96, 4];
      const w = quantize(tensorOf(shifted(N, K, 9), { device }), affine);
      const parts = {
        loraA: operand(r, K, { seed: 5, device, std: 0.2 }).tensor,
        loraB: operand(N, r, { seed: 6, device, std: 0.2 }).tensor,
        scaling: 0.5,
      };
      const before = await dequantize(w).read();
      const { weight, lost } = mergeLora(w, parts);
      const delta = matmulInputGrad(parts.loraB, parts.loraA).readSync();
      const after = await dequantize(weight).read();
      const { scales } = await weight.toGroupAffine();
      after.forEach((v, i) => {
        const wanted = (before[i] as number) + 0.5 * (delta[i] as number);
        const step = scales[Math.floor(i / 32)] as number;
        expect(Math.abs(v - wanted)).toBeLessThanOrEqual(0.501 * step);
      });
      expect(lost.kept).toBeGreaterThan(0.8);
      expect(await weight.zeroPoints?.read()).toEqual(await w.zeroPoints?.read());
      const back = await dequantize(unmergeLora(weight, parts).weight).read();
      back.forEach((v, i) => {
        const step = scales[Math.floor(i / 32)] as number;
        expect(Math.abs(v - (before[i] as number))).toBeLessThanOrEqual(1.2 * step);
      });
      expect(await dequantize(w).read()).toEqual(before);
    });
  });

  it.each([
    [32, 'groups', true],
    [64, 'size', true],
    [16, 'groups', false],
  ] as const)(
    'takes QA-LoRA of groups of %d (%s) into its zero-points: %s',
    async (groupSize, pool, whole) => {
      await scope(async () => {
        const [M, N, K] = [4, 24, 192];
        const w = quantize(tensorOf(shifted(N, K, 9), { device }), affine);
        const settings = { groupSize, pool, r: 4, loraAlpha: 8 } as const;
        const adapter = adapters.qalora.create({
          inFeatures: K,
          outFeatures: N,
          device,
          ...settings,
        });
        adapter.parameters.loraB?.write(Float32Array.from(normalMatrix(N, 4, 3, 0.5).data));
        const bias = operand(1, N, { seed: 12, device, shape: [N] }).tensor;
        const x = operand(M, K, { seed: 8, device }).tensor;
        const { y } = adapter.forward(x, w, { bias, training: false });
        const merged = adapter.merge(w, { bias });
        const weight = merged.weight as QuantizedWeight;
        const [mine, expected] = [
          matmul(x, weight, { bias: merged.bias as Tensor }).readSync(),
          y.readSync(),
        ];
        let worst = 0;
        mine.forEach((v, i) => {
          worst = Math.max(worst, Math.abs(v - (expected[i] as number)));
        });
        const size = Math.max(...expected.map(Math.abs));
        if (!whole) {
          expect(() => adapter.unmerge(weight)).toThrow(/product of factors/);
          expect(worst).toBeGreaterThan(1e-3 * size);
          return;
        }
        expect(worst).toBeLessThan(2e-6 * size);
        expect(merged.lost?.kept).toBeCloseTo(1, 6);
        expect(merged.lost?.rms).toBeLessThan(1e-6 * (merged.lost?.deltaRms as number));
        const [from, to] = [await w.toGroupAffine(), await weight.toGroupAffine()];
        expect(to.codes).toEqual(from.codes);
        expect(to.scales).toEqual(from.scales);
        const back = adapter.unmerge(weight).weight as QuantizedWeight;
        const [before, after] = [w, back].map((one) => (one.zeroPoints as Tensor).readSync());
        after?.forEach((z, i) => {
          expect(Math.abs(z - (before?.[i] as number))).toBeLessThan(1e-6);
        });
        // The weight that was given is as it was.
        const again = adapter.forward(x, w, { bias, training: false }).y;
        expect(again.readSync()).toEqual(expected);
      });
    },
  );

  it('goes to the form of other programs and back', async () => {
    await scope(async () => {
      const [N, K] = [4, 128];
      const given = shifted(N, K, 9);
      given.data.fill(-0.75, 0, 32);
      given.data.fill(0, 32, 64);
      const w = quantize(tensorOf(given, { device }), affine);
      const state = await w.toGroupAffine();
      const { codes, scales, zeros } = state;
      const values = await dequantize(w).read();
      values.forEach((v, i) => {
        const block = Math.floor(i / 32);
        const other = (scales[block] as number) * ((codes[i] as number) - (zeros[block] as number));
        expect(Math.abs(other - v)).toBeLessThan(1e-6 * 4);
      });
      const again = QuantizedWeight.fromGroupAffine(state, { device, sourceDType: 'bf16' });
      expect(again).toMatchObject({ format: 'int4', blocksize: 32, sourceDType: 'bf16', device });
      (await dequantize(again, { dtype: 'f32' }).read()).forEach((v, i) => {
        expect(Math.abs(v - (values[i] as number))).toBeLessThan(1e-6 * 4);
      });
      const moved = w.to({ device: 'reference' });
      expect(await dequantize(moved).read()).toEqual(values);
      // A weight without zero-points has them in the middle.
      const symmetric = await quantize(w4(device), { format: 'int4' }).toGroupAffine();
      expect([...symmetric.zeros]).toEqual([7.5, 7.5]);
    });
  });

  it('frees what it holds', async () => {
    await synchronize(device);
    const before = memoryUsage(device);
    const dense = Tensor.randn([8, 64], { seed: 1, device });
    const w = quantize(dense, affine);
    const x = Tensor.randn([2, 64], { seed: 2, device });
    const adapter = LoraAdapter.init({
      inFeatures: 64,
      outFeatures: 8,
      r: 2,
      loraAlpha: 2,
      seed: 1,
      device,
    });
    const { y, saved } = loraForward(x, w, adapter);
    const gradients = loraBackward(y, saved);
    const more = [w.to({ device }), w.withZeroPoints(w.zeroPoints as Tensor), dequantize(w)];
    for (const one of [dense, w, x, adapter, y, ...Object.values(gradients), ...more]) {
      one.dispose();
    }
    await synchronize(device);
    const { liveBytes, liveTensors } = memoryUsage(device);
    expect([liveBytes, liveTensors]).toEqual([before.liveBytes, before.liveTensors]);
  });
});

const w4 = (device: Device): Tensor => Tensor.randn([2, 64], { seed: 4, device });

describe('what is refused', () => {
  it('says so of options and shapes', () => {
    scope(() => {
      const w = (shape: number[]) => Tensor.zeros(shape, { device: 'cpu' });
      expect(() => quantize(w([4, 48]), affine)).toThrow(/multiple of the blocksize 32.*48/);
      expect(() => quantize(w([64]), affine)).toThrow(/\[N, K\]/);
      expect(() => quantize(w([4, 0]), affine)).toThrow(/multiple of the blocksize 32/);
      expect(() => quantize(w([4, 64]), { ...affine, format: 'nf4' })).toThrow(/zeroPoints.*nf4/);
      expect(() => quantize(w([4, 64]), { ...affine, doubleQuant: true })).toThrow(/doubleQuant/);
      expect(() => quantize(w([4, 64]), { ...affine, zeroPoints: 1 as never })).toThrow(/boolean/);
      const nan = Tensor.from(new Float32Array(32).fill(Number.NaN), [1, 32], { device: 'cpu' });
      expect(() => quantize(nan, affine)).toThrow(/finite.*NaN at 0/);
    });
  });

  it('says so of states, zero-points and formats', async () => {
    await scope(async () => {
      const w = quantize(w4('cpu'), affine);
      const state = await w.toGroupAffine();
      const read = (change: object) => () =>
        QuantizedWeight.fromGroupAffine({ ...state, ...change }, { device: 'cpu' });
      expect(read({ codes: new Uint8Array(127) })).toThrow(/codes.*128.*127/);
      expect(read({ codes: new Uint8Array(128).fill(16) })).toThrow(/0 to 15.*16 at 0/);
      expect(read({ codes: [1] })).toThrow(/Uint8Array/);
      expect(read({ scales: new Float32Array(4).fill(-1) })).toThrow(/scales.*-1/);
      expect(read({ zeros: new Float32Array(4).fill(Number.NaN) })).toThrow(/NaN/);
      expect(read({ zeros: new Float32Array(3) })).toThrow(/zeros.*4.*3/);
      expect(read({ blocksize: 48 })).toThrow(/power of two/);
      expect(read({ shape: [2, 65] })).toThrow(/multiple of the blocksize/);
      expect(read({ shape: 'no' })).toThrow(/shape/);
      expect(() => QuantizedWeight.fromGroupAffine(null as never)).toThrow(/object/);
      const nf4 = quantize(w4('cpu'), { format: 'nf4' });
      await expect(nf4.toGroupAffine()).rejects.toThrow(/int4.*nf4/);
      await expect(w.toBitsandbytes()).rejects.toThrow(/toGroupAffine.*int4/);
      expect(() => nf4.withZeroPoints(w.zeroPoints as Tensor)).toThrow(/int4.*nf4/);
      expect(() => w.withZeroPoints(Tensor.zeros([2, 3], { device: 'cpu' }))).toThrow(/\[2, 2\]/);
      expect(() => w.withZeroPoints(1 as never)).toThrow(/Tensor/);
    });
  });
});
