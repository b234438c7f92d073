// Rowwise int8 weights (LLM.int8): products, merging and files on every device, against float64.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  type Device,
  dequantize,
  devices,
  factoredNorm,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  mergeLora,
  QuantizedWeight,
  quantize,
  type RawTensor,
  scope,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.7 * i + phase) * Math.cos(0.31 * i * i));

const rowwise = { format: 'int8', rowwise: true } as const;
type State = Awaited<ReturnType<QuantizedWeight['toBitsandbytes']>>;

const weightOf = (N: number, K: number, device: Device, scale = 1): Tensor =>
  Tensor.from(
    // Rows of different sizes, so that a scale of another row shows.
    wave(N * K, 0.3).map((v, i) => v * scale * (1 + Math.floor(i / K))),
    [N, K],
    { device },
  );

/** Codes and scales in float64, from values rounded to f16. */
function oracle(w: Tensor): { codes: number[]; absmax: number[]; values: number[] } {
  const [N = 0, K = 0] = w.shape;
  const half = w.to({ dtype: 'f16' }).readSync();
  const absmax = Array.from({ length: N }, (_, n) =>
    half.subarray(n * K, (n + 1) * K).reduce((most, v) => Math.max(most, Math.abs(v)), 0),
  );
  const codes = [...half].map((v, i) => {
    const most = absmax[Math.floor(i / K)] as number;
    return most === 0 ? 0 : Math.round((127 * v) / most);
  });
  const values = codes.map((c, i) => (c * (absmax[Math.floor(i / K)] as number)) / 127);
  return { codes, absmax, values };
}

const dot = (
  a: ArrayLike<number>,
  at: number,
  b: readonly number[],
  bt: number,
  step: number,
  K: number,
) => {
  let sum = 0;
  for (let k = 0; k < K; k++) sum += (a[at + k] as number) * (b[bt + k * step] as number);
  return sum;
};

/** Rows of zeros, of f16's denormals, of ties, of its largest, and of nothing special. */
function awkward(N: number, K: number): Float32Array {
  const values = wave(N * K, 3);
  return values.map((v, i) => {
    const [n, k] = [Math.floor(i / K) % 5, i % K];
    if (n === 1) return 0;
    if (n === 2) return v * 2 ** -20;
    if (n === 3) return k === K - 1 ? 127 : (k % 80) - 39.5;
    return n === 4 ? v * 40000 : v;
  });
}

describe.each(available)('a rowwise weight on %s', (device) => {
  // K of one block a row, of several, and of odd multiples of 32.
  it.each([
    [5, 64],
    [3, 96],
    [7, 160],
    [2, 4096 + 32],
  ])('of %d x %d has the codes, products and gradients of its formula', async (N, K) => {
    await scope(async () => {
      const dense = weightOf(N, K, device);
      const expected = oracle(dense);
      const w = quantize(dense, rowwise);
      expect(w).toMatchObject({ format: 'int8', rowwise: true, doubleQuant: false });
      const state = (await w.toBitsandbytes()) as State & Record<'weight' | 'SCB', RawTensor>;
      const codes = [...(state.weight.data as Int8Array)];
      // Ties and the roundings of 127 / absmax: one code beside it, rarely.
      const off = codes.filter((code, i) => code !== (expected.codes[i] ?? 0) + 0);
      expect(off.length).toBeLessThanOrEqual(codes.length / 500);
      codes.forEach((code, i) => {
        expect(Math.abs(code - (expected.codes[i] as number))).toBeLessThanOrEqual(1);
      });
      expect([...(state.SCB.data as Float32Array)]).toEqual(expected.absmax);
      const values = codes.map(
        (c, i) => (c * (expected.absmax[Math.floor(i / K)] as number)) / 127,
      );
      (await dequantize(w).read()).forEach((v, i) => {
        const exact = values[i] as number;
        expect(Math.abs(v - exact)).toBeLessThanOrEqual(2 ** -22 * Math.abs(exact));
      });
      const M = 3;
      const x = Tensor.from(wave(M * K, 9), [M, K], { device });
      const dy = Tensor.from(wave(M * N, 4), [M, N], { device });
      const [xs, dys] = [x.readSync(), dy.readSync()];
      const y = await matmul(x, w).read();
      y.forEach((v, at) => {
        const [m, n] = [Math.floor(at / N), at % N];
        const exact = dot(xs, m * K, values, n * K, 1, K);
        expect(Math.abs(v - exact)).toBeLessThan(1e-5 * N * K ** 0.5);
      });
      const dx = await matmulInputGrad(dy, w).read();
      dx.forEach((v, at) => {
        const [m, k] = [Math.floor(at / K), at % K];
        const exact = dot(dys, m * N, values, k, K, N);
        expect(Math.abs(v - exact)).toBeLessThan(1e-5 * N);
      });
      // Written and read again, and on another device, the same bytes.
      const moved = QuantizedWeight.fromBitsandbytes(state, { device }).to({ device: 'reference' });
      expect(moved.rowwise).toBe(true);
      expect(await moved.toBitsandbytes()).toEqual(state);
    });
  });

  // A warp, some and all of a block; rows of one, two and three chunks of 16 bytes a thread.
  it.each([
    [5, 32],
    [11, 96],
    [7, 2080],
    [6, 4128],
    [5, 8192 + 96],
  ])('of %d x %d has the bytes of cpu', async (N, K) => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      await scope(async () => {
        const values = awkward(N, K);
        const made = (where: Device) =>
          quantize(Tensor.from(values, [N, K], { dtype, device: where }), rowwise);
        const [mine, cpu] = [made(device), made('cpu')];
        expect(await mine.toBitsandbytes()).toEqual(await cpu.toBitsandbytes());
        // With the scale of each block.
        expect(await dequantize(mine).read()).toEqual(await dequantize(cpu).read());
      });
    }
  });

  it('is merged into a rowwise weight, and out of it', async () => {
    await scope(async () => {
      const [N, K, r] = [6, 96, 4];
      const dense = weightOf(N, K, device, 0.5);
      const w = quantize(dense, rowwise);
      const adapter = new LoraAdapter({
        loraA: Tensor.from(wave(r * K, 1), [r, K], { device }),
        loraB: Tensor.from(wave(N * r, 2), [N, r], { device }),
        loraAlpha: 6,
      });
      const [a, b] = [adapter.loraA.readSync(), adapter.loraB.readSync()];
      const before = await dequantize(w).read();
      const { weight, lost } = mergeLora(w, adapter);
      expect(weight).toMatchObject({ rowwise: true, format: 'int8', shape: [N, K] });
      const sum = before.map((v, i) => {
        const [n, k] = [Math.floor(i / K), i % K];
        let delta = 0;
        for (let j = 0; j < r; j++) {
          delta += (b[n * r + j] as number) * (a[j * K + k] as number);
        }
        return v + 1.5 * delta;
      });
      const expected = oracle(Tensor.from(sum, [N, K], { device: 'reference' }));
      const after = await dequantize(weight).read();
      let far = 0;
      after.forEach((v, i) => {
        const step = (expected.absmax[Math.floor(i / K)] as number) / 127;
        const error = Math.abs(v - (expected.values[i] as number));
        expect(error).toBeLessThan(1.01 * step);
        if (error > 0.01 * step) far += 1;
      });
      expect(far).toBeLessThanOrEqual(after.length / 100);
      const rms = Math.sqrt(
        after.reduce((s, v, i) => s + (v - (sum[i] as number)) ** 2, 0) / (N * K),
      );
      expect(Math.abs(lost.rms / rms - 1)).toBeLessThan(1e-3);
      expect(lost.kept).toBeGreaterThan(0.99);
      const back = await dequantize(unmergeLora(weight, adapter).weight).read();
      back.forEach((v, i) => {
        const step = (expected.absmax[Math.floor(i / K)] as number) / 127;
        expect(Math.abs(v - (before[i] as number))).toBeLessThan(1.5 * step);
      });
      // The old one is as it was.
      expect(await dequantize(w).read()).toEqual(before);
      // Methods that are merged by their values.
      const scaled = adapters.ia3.create({ inFeatures: K, outFeatures: N, device });
      scaled.parameters.scale?.write(Float32Array.from({ length: N }, (_, n) => 1 + n / 4));
      const probed = scaled.merge(w).weight as QuantizedWeight;
      expect(probed.rowwise).toBe(true);
      (await dequantize(probed).read()).forEach((v, i) => {
        const factor = 1 + Math.floor(i / K) / 4;
        expect(Math.abs(v - factor * (before[i] as number))).toBeLessThan(0.02 * factor);
      });
    });
  });

  it('has its own bytes again from an update of zeros, in several tiles', async () => {
    await scope(async () => {
      const [N, K] = [10, 2 ** 15];
      const w = quantize(weightOf(N, K, device), rowwise);
      const adapter = new LoraAdapter({
        loraA: Tensor.zeros([1, K], { device }),
        loraB: Tensor.zeros([N, 1], { device }),
        loraAlpha: 1,
      });
      const { weight, lost } = mergeLora(w, adapter);
      expect(await weight.toBitsandbytes()).toEqual(await w.toBitsandbytes());
      // Decoded and encoded by way of f16.
      expect([lost.rms, lost.max, lost.kept]).toEqual([0, 0, 1]);
    });
  });

  it('is a base as any other: LoRA, norms', async () => {
    await scope(async () => {
      const [N, K, r] = [6, 64, 4];
      const w = quantize(weightOf(N, K, device), rowwise);
      const plain = dequantize(w);
      const adapter = new LoraAdapter({
        loraA: Tensor.from(wave(r * K, 1), [r, K], { device }),
        loraB: Tensor.from(wave(N * r, 2), [N, r], { device }),
        loraAlpha: 6,
      });
      const x = Tensor.from(wave(2 * K, 9), [2, K], { device });
      const dy = Tensor.from(wave(2 * N, 5), [2, N], { device });
      const run = (base: QuantizedWeight | Tensor) => {
        const { y, saved } = loraForward(x, base, adapter);
        const { dx, dLoraA } = loraBackward(dy, saved);
        const norm = factoredNorm({
          w: base,
          loraA: adapter.loraA,
          loraB: adapter.loraB,
          scaling: 1.5,
        });
        return [y, dx, dLoraA, norm].map((t) => (t as Tensor).readSync());
      };
      const [mine, expected] = [run(w), run(plain)];
      mine.forEach((values, i) => {
        values.forEach((v, j) => {
          const other = expected[i]?.[j] as number;
          expect(Math.abs(v - other)).toBeLessThan(1e-4 * Math.max(1, Math.abs(other)));
        });
      });
    });
  });
});

describe('what is refused', () => {
  const w = (shape: number[]) => Tensor.zeros(shape, { device: 'cpu' });

  it('says so of options and values', () => {
    scope(() => {
      expect(() => quantize(w([4, 48]), rowwise)).toThrow(/multiple of 32, got K = 48/);
      expect(() => quantize(w([4, 64]), { ...rowwise, format: 'nf4' })).toThrow(/rowwise.*nf4/);
      expect(() => quantize(w([4, 64]), { ...rowwise, blocksize: 64 })).toThrow(/blocksize.*64/);
      expect(() => quantize(w([4, 64]), { ...rowwise, doubleQuant: true })).toThrow(/doubleQuant/);
      expect(() => quantize(w([4, 64]), { ...rowwise, rowwise: 1 as never })).toThrow(/boolean/);
    });
  });

  it.each(available)(
    'of values that are not finite in f16, at the first read, on %s',
    async (device) => {
      await scope(async () => {
        for (const value of [1e6, Number.NaN, Number.NEGATIVE_INFINITY]) {
          const values = new Float32Array(3 * 4128);
          values[4128 + 4100] = value;
          const w = quantize(Tensor.from(values, [3, 4128], { device }), rowwise);
          await expect(w.toBitsandbytes()).rejects.toThrow(
            expect.objectContaining({
              code: 'ERR_NON_FINITE',
              message: expect.stringMatching(/finite in f16.*element 8228/),
            }),
          );
        }
      });
    },
  );

  it('says so of states', async () => {
    await scope(async () => {
      const state = await quantize(w([2, 32]), rowwise).toBitsandbytes();
      const read = (change: State) => () =>
        QuantizedWeight.fromBitsandbytes({ ...state, ...change }, { device: 'cpu' });
      const f32 = (...values: number[]) => ({
        dtype: 'F32' as const,
        shape: [values.length],
        data: Float32Array.from(values),
      });
      expect(read({ SCB: f32(1) })).toThrow(/SCB.*\[2\].*\[1\]/);
      expect(read({ SCB: f32(1, -1) })).toThrow(/SCB.*not negative.*-1 at 1/);
      expect(read({ SCB: f32(1, Number.NaN) })).toThrow(/SCB.*NaN at 1/);
      const bytes = new Uint8Array(64);
      expect(read({ weight: { dtype: 'U8', shape: [2, 32], data: bytes } })).toThrow(/I8.*U8/);
      const codes = new Int8Array(64);
      expect(read({ weight: { dtype: 'I8', shape: [64], data: codes } })).toThrow(/\[N, K\]/);
      expect(read({ weight: { dtype: 'I8', shape: [2, 16], data: codes } })).toThrow(/weight/);
      const tiled = { dtype: 'U8' as const, shape: [], data: new Uint8Array([1]) };
      expect(read({ weight_format: tiled })).toThrow(/weight_format.*0 \(rows\).*1/);
      const { weight_format: _, ...without } = state;
      expect(QuantizedWeight.fromBitsandbytes(without, { device: 'cpu' }).rowwise).toBe(true);
      const { weight: __, ...empty } = state;
      expect(() => QuantizedWeight.fromBitsandbytes(empty)).toThrow(/weight.*none/);
    });
  });
});
