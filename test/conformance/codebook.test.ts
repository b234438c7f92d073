// int8 weights with a table of the user's: the format's own table gives the bytes of the native quantiser,
// another one the nearest level.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  dequantize,
  devices,
  matmul,
  mergeLora,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

/** 256 levels, denser near 0, none of them 0. */
const CUBIC = Float32Array.from({ length: 256 }, (_, i) => ((2 * i - 255) / 255) ** 3);

/** From v to the nearest level times absmax. */
function gapOf(v: number, absmax: number): number {
  const above = CUBIC.findIndex((level) => level * absmax >= v);
  const near = above < 0 ? [255] : [above, Math.max(above - 1, 0)];
  return Math.min(...near.map((i) => Math.abs((CUBIC[i] as number) * absmax - v)));
}

describe.each(available)('a codebook on %s', (device) => {
  it.each(['f32', 'bf16'] as const)('that is the format’s gives its bytes, %s', async (dtype) => {
    await scope(async () => {
      // Of six blocks the fourth is zeros, the fifth too small for a reciprocal.
      const values = Tensor.randn([6, 64], { seed: 3, device: 'reference' }).readSync();
      values.fill(0, 192, 256);
      values.fill(0, 256, 320);
      values[300] = 2 ** -130;
      const w = Tensor.from(values, [6, 64], { device }).to({ dtype });
      const own = await quantize(w, { format: 'int8', blocksize: 64 }).toBitsandbytes();
      const codebook = own['weight.quant_map']?.data as Float32Array;
      const mine = quantize(w, { format: 'int8', blocksize: 64, codebook });
      expect(await mine.toBitsandbytes()).toEqual(own);
      expect(mine.sourceDType).toBe(dtype);
    });
  });

  it('of another kind gives the nearest level, in products and files too', async () => {
    await scope(async () => {
      const [N, K] = [5, 100];
      const w = Tensor.randn([N, K], { seed: 4, device });
      const packed = quantize(w, { format: 'int8', blocksize: 128, codebook: CUBIC });
      const [values, decoded] = [w.readSync(), dequantize(packed).readSync()];
      for (let begin = 0; begin < N * K; begin += 128) {
        const block = values.subarray(begin, begin + 128);
        const absmax = block.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        block.forEach((v, i) => {
          const gap = gapOf(v, absmax);
          expect(Math.abs((decoded[begin + i] as number) - v)).toBeLessThanOrEqual(gap + 1e-6);
        });
      }
      const state = await packed.toBitsandbytes();
      expect(state['weight.quant_map']?.data).toEqual(CUBIC);
      const again = QuantizedWeight.fromBitsandbytes(state, { device });
      const x = Tensor.randn([3, K], { seed: 5, device });
      const expected = await matmul(x, dequantize(packed)).read();
      (await matmul(x, again).read()).forEach((v, i) => {
        expect(Math.abs(v - (expected[i] as number))).toBeLessThan(1e-4);
      });
    });
  });
});

describe.each(available)('merging into a weight of a codebook on %s', (device) => {
  it('keeps the table of a method that adds no product of factors too', async () => {
    await scope(async () => {
      const [N, K] = [6, 128];
      const dense = Tensor.randn([N, K], { seed: 4, device });
      const w = quantize(dense, { format: 'int8', blocksize: 128, codebook: CUBIC });
      const place = { inFeatures: K, outFeatures: N, device, weight: w };
      const adapter = adapters.dora.create({ ...place, r: 2, seed: 1 });
      adapter.parameters.loraB?.write(Tensor.randn([N, 2], { seed: 2, device }).readSync());
      const wanted = adapter.merge(dequantize(w, { dtype: 'f32' })).weight as Tensor;
      const merged = adapter.merge(w).weight as QuantizedWeight;
      expect((await merged.toBitsandbytes())['weight.quant_map']?.data).toEqual(CUBIC);
      const values = dequantize(merged, { dtype: 'f32' }).readSync();
      const expected = wanted.readSync();
      for (let n = 0; n < N; n++) {
        const row = expected.subarray(n * K, (n + 1) * K);
        const absmax = row.reduce((most: number, v: number) => Math.max(most, Math.abs(v)), 0);
        row.forEach((v: number, k: number) => {
          const error = Math.abs((values[n * K + k] as number) - v);
          expect(error).toBeLessThanOrEqual(gapOf(v, absmax) + 1e-5);
        });
      }
    });
  });

  // 100 columns in blocks of 128: tiles of a megabyte begin at multiples of 32 rows.
  it.each([
    [2701, 100],
    [3, 256],
  ])('keeps the table, [%i, %i]', async (N, K) => {
    await scope(async () => {
      const w = Tensor.randn([N, K], { seed: 6, device });
      const quantised = quantize(w, { format: 'int8', blocksize: 128, codebook: CUBIC });
      const state = await quantised.toBitsandbytes();
      const parts = {
        loraA: Tensor.randn([2, K], { seed: 7, device }),
        loraB: Tensor.randn([N, 2], { seed: 8, device }),
        scaling: 0.5,
      };
      const [a, b] = [parts.loraA.readSync(), parts.loraB.readSync()];
      const old = dequantize(quantised).readSync();
      const sum = old.map((v, i) => {
        const [n, k] = [Math.floor(i / K), i % K];
        const at = (j: number) => (b[2 * n + j] as number) * (a[j * K + k] as number);
        return v + 0.5 * (at(0) + at(1));
      });
      const loaded = QuantizedWeight.fromBitsandbytes(state, { device });
      const moved = quantised.to({ device });
      for (const packed of [quantised, loaded, moved]) {
        const { weight, lost } = mergeLora(packed, parts);
        expect((await weight.toBitsandbytes())['weight.quant_map']?.data).toEqual(CUBIC);
        const merged = dequantize(weight, { dtype: 'f32' }).readSync();
        let most = 0;
        let beyond = 0; // how much further than the nearest level
        for (let begin = 0; begin < N * K; begin += 128) {
          const block = sum.subarray(begin, begin + 128);
          const absmax = block.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
          block.forEach((v, i) => {
            const gap = gapOf(v, absmax);
            beyond = Math.max(beyond, Math.abs((merged[begin + i] as number) - v) - gap);
            most = Math.max(most, gap);
          });
        }
        expect(beyond).toBeLessThanOrEqual(1e-5);
        expect(Math.abs(lost.max - most)).toBeLessThan(1e-5);
        // And again, of a weight that was merged.
        const back = unmergeLora(weight, parts).weight;
        expect((await back.toBitsandbytes())['weight.quant_map']?.data).toEqual(CUBIC);
      }
    });
  });
});

it('is refused in words where it is none', () => {
  scope(() => {
    const w = Tensor.zeros([2, 64], { device: 'cpu' });
    const make = (options: object) => () =>
      quantize(w, { format: 'int8', codebook: CUBIC, ...options });
    expect(make({ format: 'nf4' })).toThrow(/codebook.*nf4/);
    expect(make({ doubleQuant: true })).toThrow(/doubleQuant/);
    expect(make({ rowwise: true })).toThrow(/codebook/);
    expect(make({ codebook: [...CUBIC] })).toThrow(/Float32Array/);
    expect(make({ codebook: CUBIC.slice(1) })).toThrow(/256 levels.*255/);
    expect(make({ codebook: CUBIC.slice().reverse() })).toThrow(/ascending.*at 1/);
    expect(make({ codebook: CUBIC.map((v) => 2 * v) })).toThrow(/within ±1.*-2 at 0/);
    const nan = CUBIC.slice();
    nan[7] = Number.NaN;
    expect(make({ codebook: nan })).toThrow(/NaN at 7/);
    w.write(new Float32Array(128).fill(Number.POSITIVE_INFINITY));
    expect(make({})).toThrow(/finite.*Infinity at 0/);
  });
});
