// mergeLora and unmergeLora: the sum in float64, the tiles against the whole, and what is lost.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  dequantize,
  FORMATS,
  LoraAdapter,
  type MergeLoss,
  matmulInputGrad,
  memoryUsage,
  mergeLora,
  multiplyAdd,
  type QuantFormat,
  type QuantizedWeight,
  quantize,
  resetPeakMemory,
  scope,
  synchronize,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';
import { bound, exact, type Matrix, map, matrix, times } from '../oracle.js';
import { DEVICES, DTYPES, operand, QUANTISED, type WeightSpec, weightOperand } from './operands.js';

/** beta · W + scaling · B · C · A and the sum of its terms' sizes. */
function merged64(
  w: Matrix,
  b: Matrix,
  c: Matrix | undefined,
  a: Matrix,
  scaling: number,
  beta: number,
) {
  const sum = (f: (value: number) => number) => {
    const left = c === undefined ? map(b, f) : times(map(b, f), map(c, f));
    const delta = times(left, map(a, f));
    return map(delta, (d, i) => f(scaling) * d + f(beta) * f(w.data[i] as number));
  };
  return { value: sum((v) => v), p: sum(Math.abs) };
}

const diagonal = (c: Matrix): Matrix => {
  const out = matrix(c.cols, c.cols);
  for (let i = 0; i < c.cols; i++) out.data[i * c.cols + i] = c.data[i] as number;
  return out;
};

/** The report, from its definition. */
function loss64(before: ArrayLike<number>, wanted: ArrayLike<number>, after: ArrayLike<number>) {
  let [error, update, moved, max] = [0, 0, 0, 0];
  for (let i = 0; i < wanted.length; i++) {
    const [w, v, q] = [before[i] as number, wanted[i] as number, after[i] as number];
    error += (q - v) ** 2;
    update += (v - w) ** 2;
    moved += (q - w) * (v - w);
    max = Math.max(max, Math.abs(q - v));
  }
  return {
    rms: Math.sqrt(error / wanted.length),
    max,
    deltaRms: Math.sqrt(update / wanted.length),
    kept: moved / update,
  };
}

function sameLoss(name: string, actual: MergeLoss, expected: MergeLoss, tolerance: number): void {
  for (const key of ['rms', 'max', 'deltaRms', 'kept'] as const) {
    const [got, right] = [actual[key], expected[key]];
    if (!(Math.abs(got - right) <= tolerance * Math.abs(right))) {
      throw new Error(`${name}: ${key} is ${got}, expected ${right}`);
    }
  }
}

const CORES = ['none', 'diagonal', 'matrix'] as const;

describe.each(DEVICES)('%s', (device) => {
  it.each(DTYPES)('a dense %s weight in place', async (dtype) => {
    for (const [turn, core] of CORES.entries()) {
      await scope(async () => {
        const [N, K, r] = [37, 45, 5];
        const p = core === 'matrix' ? 3 : r;
        const w = operand(N, K, { seed: 1, dtype, device });
        const a = operand(r, K, { seed: 2, dtype: turn === 0 ? dtype : 'f32', device });
        const b = operand(N, p, { seed: 3, device });
        const shape = core === 'matrix' ? [p, r] : [r];
        const c = operand(core === 'matrix' ? p : 1, r, { seed: 4, device, shape });
        const middle =
          core === 'none' ? undefined : core === 'matrix' ? c.matrix : diagonal(c.matrix);
        const parts = {
          loraA: a.tensor,
          loraB: b.tensor,
          ...(core === 'none' ? {} : { core: c.tensor }),
          scaling: -1.25,
          beta: turn === 1 ? 0.75 : 1,
        };
        const { weight, lost } = mergeLora(w.tensor, parts);
        expect(weight).toBe(w.tensor);
        const sum = merged64(w.matrix, b.matrix, middle, a.matrix, -1.25, parts.beta);
        const after = await weight.read();
        bound(`merged, core ${core}`, after, sum, { dtype });
        const expected = loss64(w.matrix.data, sum.value.data, after);
        if (dtype === 'f32') expect(lost.rms).toBeLessThan(1e-6);
        else sameLoss('lost', lost, expected, 1e-3);
        expect(Math.abs(lost.kept - 1)).toBeLessThan(1e-2);
        // And out again, to within the rounding.
        unmergeLora(weight, parts);
        const back = await weight.read();
        const unit = { f32: 1e-5, bf16: 0.15, f16: 0.02 }[dtype];
        back.forEach((value, i) => {
          expect(Math.abs(value - (w.matrix.data[i] as number))).toBeLessThan(unit);
        });
      });
    }
  });

  const check = async (spec: WeightSpec, N: number, K: number, blocksize: number) => {
    const r = 4;
    const { w } = weightOperand(spec, N, K, 'f32', { seed: 11, device, blocksize });
    const packed = w as QuantizedWeight;
    const loraA = operand(r, K, { seed: 12, device }).tensor;
    const loraB = operand(N, r, { seed: 13, std: 0.2, device }).tensor;
    const { weight, lost } = mergeLora(packed, { loraA, loraB, scaling: 0.5 });
    expect([weight.shape, weight.format, weight.blocksize, weight.doubleQuant]).toEqual([
      [N, K],
      packed.format,
      blocksize,
      packed.doubleQuant,
    ]);
    expect(weight).not.toBe(packed);
    const before = dequantize(packed);
    const wanted = multiplyAdd({ a: matmulInputGrad(loraB, loraA), c: before, alpha: 0.5 });
    const { doubleQuant } = packed;
    const format = packed.format as QuantFormat;
    const whole = quantize(wanted, { format, blocksize, doubleQuant });
    const after = await dequantize(weight).read();
    const expected = await dequantize(whole).read();
    if (device === 'cpu' || device === 'reference') {
      // Tiles have the bytes of the whole.
      exact('values', after, expected);
      if (FORMATS.find(({ name }) => name === format)?.bitsandbytes) {
        const [mine, right] = [await weight.toBitsandbytes(), await whole.toBitsandbytes()];
        for (const [key, part] of Object.entries(right)) {
          exact(key, mine[key]?.data as Uint8Array, part.data as Uint8Array);
        }
      }
    } else {
      // A product of other rows may add in another order, and a code at a threshold change.
      const odd = after.filter((value, i) => Math.abs(value - (expected[i] as number)) > 1e-4);
      expect(odd.length).toBeLessThan(after.length / 1000);
    }
    sameLoss('lost', lost, loss64(await before.read(), await wanted.read(), after), 1e-3);
    expect(lost.kept).toBeGreaterThan(0.9);
  };

  it.each(QUANTISED)('a $name weight', async (spec) => {
    for (const [N, K, blocksize] of [
      [12, 64, 64],
      [7, 45, 32],
      [70, 520, 128],
    ] as const) {
      await scope(() => check(spec, N, K, blocksize));
    }
  });

  it('over several tiles', async () => {
    const specs = QUANTISED.filter(({ format }) => format === 'nf4');
    for (const spec of specs) await scope(() => check(spec, 300, 1024, 64));
    if (device === 'cpu') for (const spec of specs) await scope(() => check(spec, 6000, 100, 64));
    await scope(async () => {
      const [N, K] = [300, 1000];
      const w = operand(N, K, { seed: 1, dtype: 'bf16', device });
      const a = operand(2, K, { seed: 2, device });
      const b = operand(N, 2, { seed: 3, device });
      mergeLora(w.tensor, { loraA: a.tensor, loraB: b.tensor });
      const sum = merged64(w.matrix, b.matrix, undefined, a.matrix, 1, 1);
      bound('dense', await w.tensor.read(), sum, { dtype: 'bf16' });
    });
  });

  it('decodes to the dtype that the weight was quantised from', async () => {
    await scope(async () => {
      const source = operand(40, 64, { seed: 1, dtype: 'bf16', device }).tensor;
      const how = { format: 'nf4', doubleQuant: true } as const;
      const w = quantize(source, how);
      const none = {
        loraA: Tensor.zeros([1, 64], { device }),
        loraB: Tensor.zeros([40, 1], { device }),
      };
      const { weight, lost } = mergeLora(w, none);
      expect([weight.sourceDType, lost.deltaRms, lost.kept]).toEqual(['bf16', 0, 1]);
      const bytes = async (of: QuantizedWeight): Promise<number[][]> => {
        const state = await of.toBitsandbytes();
        return [state.weight, state['weight.absmax']].map((part) =>
          Array.from(part?.data as Uint8Array),
        );
      };
      const again = async (dtype: 'bf16' | 'f32'): Promise<number[][]> => {
        const before = await dequantize(w, { dtype }).read();
        return bytes(quantize(Tensor.from(before, [40, 64], { device }), how));
      };
      const mine = await bytes(weight);
      expect(mine).toEqual(await again('bf16'));
      expect(mine).not.toEqual(await again('f32'));
    });
  });

  it('says how much of a small update the codes keep', async () => {
    await scope(async () => {
      const [N, K] = [64, 256];
      const w = quantize(operand(N, K, { seed: 1, device }).tensor, { format: 'nf4' });
      const parts = (size: number) => ({
        loraA: operand(2, K, { seed: 2, device }).tensor,
        loraB: operand(N, 2, { seed: 3, device }).tensor,
        scaling: size,
      });
      const tiny = mergeLora(w, parts(1e-6)).lost;
      const large = mergeLora(w, parts(1)).lost;
      expect(Math.abs(tiny.kept)).toBeLessThan(0.1);
      expect(tiny.rms).toBeLessThan(3 * tiny.deltaRms);
      expect(Math.abs(large.kept - 1)).toBeLessThan(0.05);
      // Where an element holds the largest of its block, the block's scale follows it.
      expect(large.max).toBeGreaterThan(large.rms);
    });
  });

  it('takes an adapter as it is; an infinite sum is refused', async () => {
    await scope(async () => {
      const loraA = operand(3, 64, { seed: 1, device }).tensor;
      const loraB = operand(9, 3, { seed: 2, device }).tensor;
      const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 6 });
      const w = Tensor.zeros([9, 64], { device });
      mergeLora(w, adapter);
      const expected = multiplyAdd({ a: matmulInputGrad(loraB, loraA), alpha: 2 });
      const right = await expected.read();
      (await w.read()).forEach((value, i) => {
        expect(value).toBeCloseTo(right[i] as number, 5);
      });
      const huge = Tensor.from(new Float32Array(27).fill(3e38), [9, 3], { device });
      const packed = quantize(w, { format: 'nf4', doubleQuant: true });
      const code = (call: () => unknown): unknown => {
        try {
          call();
        } catch (error) {
          return (error as { code?: unknown }).code;
        }
        return 'nothing thrown';
      };
      expect(code(() => mergeLora(packed, { loraA, loraB: huge }))).toBe('ERR_NON_FINITE');
    });
  });
});

it('holds tiles, and no dense copy', async () => {
  const device: Device = 'cpu';
  await scope(async () => {
    const [N, K] = [2048, 2048];
    const source = Tensor.randn([N, K], { seed: 1, device });
    const loraA = Tensor.randn([8, K], { seed: 2, device });
    const loraB = Tensor.randn([N, 8], { seed: 3, device });
    for (const doubleQuant of [false, true]) {
      const w = quantize(source, { format: 'nf4', doubleQuant });
      await synchronize(device);
      resetPeakMemory(device);
      const before = memoryUsage(device).liveBytes;
      const { weight } = mergeLora(w, { loraA, loraB });
      const most = memoryUsage(device).peakBytes - before;
      // The new weight, one scale a block, the factors again and tiles; W in f32 is 16.8 MB.
      expect(most - weight.byteLength).toBeLessThan(6.5e6);
    }
  });
});
