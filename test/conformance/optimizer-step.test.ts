// adamwStep and globalNorm against PyTorch's formulas in float64: many parameters of different sizes and dtypes in one
// call, clipping, factors and weight decay of each, a rate and a counter on the device; the same bits on every device
// and for any number of threads; what is not finite changes nothing.
import { describe, expect, it } from 'vitest';
import {
  type AdamWStepOptions,
  adamwStep,
  type Device,
  type DType,
  globalNorm,
  scope,
  setThreads,
  Tensor,
} from '../../lib/index.js';
import { type AdamWState, adamw64, exact, globalNorm64, roundTo } from '../oracle.js';
import { DEVICES, DTYPES, operand, seeded } from './operands.js';

/** Empty, one, in and out of whole vectors, more than one piece of the kernels, in ragged order. */
const SHAPES: readonly (readonly number[])[] = [
  [7, 33],
  [1],
  [0, 5],
  [16, 64],
  [3, 16385],
  [5],
  [129],
  [2, 8192],
];

interface Model {
  readonly p: Tensor[];
  readonly g: Tensor[];
  readonly m: Tensor[];
  readonly v: Tensor[];
}

function modelOn(
  device: Device,
  spec: { pTypes?: readonly DType[]; gTypes?: readonly DType[]; shapes?: typeof SHAPES } = {},
): Model {
  const { pTypes = ['f32'], gTypes = ['f32'], shapes = SHAPES } = spec;
  const make = (shape: readonly number[], i: number, kind: number, dtype: DType, std: number) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return operand(1, size, { seed: seeded(i, kind), dtype, device, std, shape: [...shape] })
      .tensor;
  };
  const of = (types: readonly DType[], i: number) => types[i % types.length] as DType;
  return {
    p: shapes.map((shape, i) => make(shape, i, 1, of(pTypes, i), 1)),
    g: shapes.map((shape, i) => make(shape, i, 2, of(gTypes, i), 0.1)),
    m: shapes.map((shape) => Tensor.zeros(shape, { device })),
    v: shapes.map((shape) => Tensor.zeros(shape, { device })),
  };
}

const read = (tensors: readonly Tensor[]): Promise<Float32Array[]> =>
  Promise.all(tensors.map((tensor) => tensor.read()));

async function bitsOf({ p, m, v }: Model): Promise<Float32Array[]> {
  return (await Promise.all([p, m, v].map(read))).flat();
}

function expectSame(what: string, got: readonly Float32Array[], want: readonly Float32Array[]) {
  expect(got.length).toBe(want.length);
  for (const [i, values] of got.entries()) exact(`${what} ${i}`, values, want[i] as Float32Array);
}

const scalar = (value: number, device: Device) => Tensor.from([value], [1], { device });

/** Units in the last place of f32 for what one step rounds: p 6 times, m 4, v 5, and the clipped gradient. */
function expectNear(got: Float32Array, want: Float64Array, size: Float64Array, dtype: DType): void {
  for (const [i, value] of got.entries()) {
    const limit = 12 * 2 ** -24 * (size[i] as number) + 1e-44;
    const low = roundTo(dtype, (want[i] as number) - limit);
    const high = roundTo(dtype, (want[i] as number) + limit);
    if (!(value >= low && value <= high)) {
      throw new Error(`element ${i}: got ${value}, expected ${low} to ${high}`);
    }
  }
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(DTYPES)('the norm of gradients of %s is that of all elements', async (dtype) => {
    await scope(async () => {
      const { g } = modelOn(device, { gTypes: [dtype, 'f32'] });
      const norm = globalNorm(g);
      expect([norm.shape, norm.dtype]).toEqual([[1], 'f32']);
      const got = (await norm.read())[0] as number;
      const want = globalNorm64(await read(g));
      expect(Math.abs(got - want)).toBeLessThanOrEqual(want * 2 ** -23);
      const huge = Tensor.from([3e38, 2e38], [2], { device });
      expect((await globalNorm([huge]).read())[0]).toBe(Number.POSITIVE_INFINITY);
      const tiny = Tensor.from([3e-30, 4e-30], [2], { device });
      expect((await globalNorm([tiny]).read())[0]).toBe(Math.fround(5e-30));
      expect((await globalNorm([Tensor.zeros([0], { device })]).read())[0]).toBe(0);
    });
  });

  it.each(DTYPES)('three steps on parameters and gradients of %s', async (dtype) => {
    await scope(async () => {
      const others = [dtype, 'f32', 'bf16'] as const;
      const model = modelOn(device, { pTypes: [dtype, 'f32'], gTypes: others });
      const weightDecay = SHAPES.map((_, i) => (i % 3) * 0.1);
      const lrScale = SHAPES.map((_, i) => 1 + (i % 2) * 15);
      for (let step = 1; step <= 3; step++) {
        const before = await bitsOf(model);
        const gradients = await read(model.g);
        const norm = globalNorm(model.g);
        const options = { lr: 0.01, step, weightDecay, lrScale, norm, maxNorm: 2, eps: 1e-6 };
        adamwStep(model.p, model.g, model.m, model.v, { ...options, betas: [0.8, 0.95] });
        const after = await bitsOf(model);
        const count = SHAPES.length;
        for (let i = 0; i < count; i++) {
          const at = (k: number) => Float64Array.from(before[k * count + i] as Float32Array);
          const state: AdamWState = { p: at(0), m: at(1), v: at(2) };
          const want = adamw64(state, gradients[i] as Float32Array, {
            lr: Math.fround(0.01) * (lrScale[i] as number),
            step,
            betas: [0.8, 0.95],
            eps: 1e-6,
            weightDecay: weightDecay[i] as number,
            norm: (await norm.read())[0] as number,
            maxNorm: 2,
          });
          const pType = (model.p[i] as Tensor).dtype;
          expectNear(after[i] as Float32Array, want.p, want.size.p, pType);
          expectNear(after[count + i] as Float32Array, want.m, want.size.m, 'f32');
          expectNear(after[2 * count + i] as Float32Array, want.v, want.size.v, 'f32');
        }
      }
    });
  });

  it('has the bits of the reference, for any number of threads and one parameter at a time', async () => {
    await scope(async () => {
      const types = { pTypes: DTYPES, gTypes: ['bf16', 'f32'] } as const;
      const norm = (on: Device) => scalar(3.5, on);
      const run = async (on: Device, alone = false): Promise<Float32Array[]> => {
        const { p, g, m, v } = modelOn(on, types);
        for (const step of [1, 2]) {
          const options = { lr: 0.003, step, norm: norm(on), maxNorm: 1 };
          if (!alone) adamwStep(p, g, m, v, options);
          for (const i of alone ? p.keys() : []) {
            const one = [p, g, m, v].map((list) => [list[i] as Tensor]) as Tensor[][];
            adamwStep(...(one as [Tensor[], Tensor[], Tensor[], Tensor[]]), options);
          }
        }
        return bitsOf({ p, g, m, v });
      };
      const want = await run('reference');
      const sums = async (): Promise<Float32Array> => globalNorm(modelOn(device, types).g).read();
      setThreads(1);
      const sum = await sums();
      if (device === 'cpu')
        exact('norm', sum, await globalNorm(modelOn('reference', types).g).read());
      for (const threads of [1, 2, 3, 8]) {
        setThreads(threads);
        expectSame(`${threads} threads`, await run(device), want);
        exact(`norm, ${threads} threads`, await sums(), sum);
      }
      setThreads(2);
      expectSame('alone', await run(device, true), want);
    });
  });

  it('reads the rate and counts the steps on the device, with the bits of numbers', async () => {
    await scope(async () => {
      const [one, other] = [modelOn(device), modelOn(device)];
      const lr = scalar(0.02, device);
      const done = scalar(0, device);
      for (const step of [1, 2, 3]) {
        adamwStep(one.p, one.g, one.m, one.v, { lr: 0.02, step });
        adamwStep(other.p, other.g, other.m, other.v, { lr, step: done });
      }
      expectSame('device', await bitsOf(other), await bitsOf(one));
      expect(await done.read()).toEqual(Float32Array.of(3));
      done.write(Float32Array.of(1000));
      lr.write(Float32Array.of(0.5));
      adamwStep(one.p, one.g, one.m, one.v, { lr: 0.5, step: 1001 });
      adamwStep(other.p, other.g, other.m, other.v, { lr, step: done });
      expectSame('later', await bitsOf(other), await bitsOf(one));
    });
  });

  it.each([
    ['the norm is NaN', Number.NaN, 0.1],
    ['the norm is infinite', Number.POSITIVE_INFINITY, 0.1],
    ['the rate is NaN', 1, Number.NaN],
    ['the rate is infinite', 1, Number.POSITIVE_INFINITY],
    ['the rate is negative', 1, -0.1],
  ])('changes nothing and does not count where %s', async (_, norm, lr) => {
    await scope(async () => {
      const { p, g, m, v } = modelOn(device);
      const step = scalar(4, device);
      const options = (rate: number): AdamWStepOptions => ({ lr: scalar(rate, device), step });
      adamwStep(p, g, m, v, { ...options(0.1), norm: scalar(1, device) });
      const before = await bitsOf({ p, g, m, v });
      adamwStep(p, g, m, v, { ...options(lr), norm: scalar(norm, device), maxNorm: 1 });
      expectSame('after', await bitsOf({ p, g, m, v }), before);
      expect(await step.read()).toEqual(Float32Array.of(5));
      const broken = Tensor.from([1, Number.NaN], [2], { device });
      expect((await globalNorm([...g, broken]).read())[0]).toBeNaN();
    });
  });

  it('takes more parameters than one launch', async () => {
    await scope(async () => {
      const shapes = Array.from({ length: 330 }, (_, i) => [1 + (i % 7)]);
      const [model, want] = [modelOn(device, { shapes }), modelOn('reference', { shapes })];
      const step = scalar(9, device);
      for (const each of [model, want]) {
        const on = (each.p[0] as Tensor).device;
        const counter = each === model ? step : 10;
        adamwStep(each.p, each.g, each.m, each.v, { lr: 0.1, step: counter, norm: scalar(2, on) });
      }
      expectSame('many', await bitsOf(model), await bitsOf(want));
      expect(await step.read()).toEqual(Float32Array.of(10));
      const norm = (await globalNorm(model.g).read())[0] as number;
      const norm64 = globalNorm64(await read(model.g));
      expect(Math.abs(norm - norm64)).toBeLessThanOrEqual(norm64 * 2 ** -23);
    });
  });
});
