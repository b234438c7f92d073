// swiglu and its gradients against the formula in float64, every dtype and device; the same bits on every device but
// reference, and with autograd's own check.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type DType,
  scope,
  setThreads,
  swiglu,
  swigluBackward,
  type Tensor,
} from '../../lib/index.js';
import { source } from '../oracle/inputs.js';
import { exact, matrix, roundTo, ulp } from '../oracle.js';
import { DEVICES, DTYPES, tensorOf } from './operands.js';
import { dGate64, dUp64, within, y64 } from './swiglu-bounds.js';

/** Where SiLU turns, where it is flat, denormals, and values of every size. */
function values(dtype: DType, count: number, seed: number): number[] {
  const from = source(seed);
  const fixed = [0, -0, 1, -1, -1.2784645, 20, -20, 88, -88, -104, ulp(dtype, 0), -ulp(dtype, 0)];
  return Array.from({ length: count }, (_, i) => {
    const sign = from.uniform() < 0.5 ? -1 : 1;
    const small = sign * 2 ** (12 * from.uniform() - 8);
    return roundTo(dtype, fixed[i] ?? small);
  });
}

const GROUPS = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

describe.each(GROUPS)('$device, $dtype', ({ device, dtype }) => {
  it.each([[0], [1], [7], [4099], [33 * 130]])('%i elements', async (count) => {
    await scope(async () => {
      const [g, u, d] = [1, 2, 3].map((seed) => values(dtype, count, seed)) as [
        number[],
        number[],
        number[],
      ];
      const shape = count === 33 * 130 ? [33, 10, 13] : [count];
      const on = (list: number[]): Tensor =>
        tensorOf(matrix(1, count, Float64Array.from(list)), { dtype, device, shape });
      const y = swiglu(on(g), on(u));
      const { dGate, dUp } = swigluBackward(on(d), on(g), on(u));
      for (const tensor of [y, dGate, dUp]) {
        expect([tensor.shape, tensor.dtype, tensor.device]).toEqual([shape, dtype, device]);
      }
      const [ys, dGates, dUps] = await Promise.all([y.read(), dGate.read(), dUp.read()]);
      expect(ys.length).toBe(count);
      for (let i = 0; i < count; i++) {
        const [gi, ui, di] = [g[i], u[i], d[i]] as [number, number, number];
        const at = `${gi}, ${ui}, ${di}`;
        within(`y(${at})`, dtype, ys[i] as number, y64(gi, ui), Math.abs(gi * ui));
        within(`dUp(${at})`, dtype, dUps[i] as number, dUp64(di, gi), Math.abs(di * gi));
        const terms = Math.abs(di * ui) * (1 + Math.abs(gi));
        within(`dGate(${at})`, dtype, dGates[i] as number, dGate64(di, gi, ui), terms);
      }
    });
  });

  it('what is not finite stays in its place, and dy may have another dtype', async () => {
    await scope(async () => {
      const on = (list: number[], type: DType = dtype): Tensor =>
        tensorOf(matrix(1, list.length, Float64Array.from(list)), { dtype: type, device });
      const odd = [1, Number.NaN, Infinity, -Infinity, 2];
      const y = await swiglu(on(odd), on([1, 1, 1, 1, 1])).read();
      expect([...y].map(Number.isFinite)).toEqual([true, false, false, false, true]);
      expect(y[2]).toBe(Infinity);
      const { dUp } = swigluBackward(on([1, 1, 1, 1, 3], 'f32'), on(odd), on([1, 1, 1, 1, 1]));
      const grads = await dUp.read();
      expect([...grads].map(Number.isFinite)).toEqual([true, false, false, false, true]);
      within('dUp', dtype, grads[4] as number, dUp64(3, 2), 6);
    });
  });
});

it('the same bits on every device but reference, on any number of threads', async () => {
  await scope(async () => {
    const count = 40_000;
    const [g, u, d] = [1, 2, 3].map((seed) =>
      matrix(1, count, Float64Array.from(values('f32', count, seed))),
    );
    const run = async (device: (typeof DEVICES)[number]): Promise<Float32Array[]> => {
      const [gate, up, dy] = [g, u, d].map((m) => tensorOf(m as never, { device })) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const { dGate, dUp } = swigluBackward(dy, gate, up);
      return Promise.all([swiglu(gate, up), dGate, dUp].map((tensor) => tensor.read()));
    };
    const expected = await run('cpu');
    for (const threads of [1, 3]) {
      setThreads(threads);
      for (const [i, got] of (await run('cpu')).entries())
        exact(`${threads} threads`, got, expected[i] as Float32Array);
    }
    for (const device of DEVICES.filter((name) => name !== 'cpu' && name !== 'reference')) {
      for (const [i, got] of (await run(device)).entries())
        exact(device, got, expected[i] as Float32Array);
    }
  });
});

it('the gradients are those that differences give', () => {
  scope(() => {
    const on = (seed: number): Tensor => {
      const data = Float64Array.from(values('f32', 40, seed).slice(16));
      return tensorOf(matrix(3, 8, data.map(Math.tanh)), { device: 'reference' });
    };
    const reports = checkGradients({
      inputs: { gate: on(1), up: on(2) },
      forward: ({ gate, up }) => swiglu(gate as Tensor, up as Tensor),
      backward: (dy, { gate, up }) => {
        const { dGate, dUp } = swigluBackward(dy, gate as Tensor, up as Tensor);
        return { gate: dGate, up: dUp };
      },
    });
    expect(reports.map(({ name, passed }) => [name, passed])).toEqual([
      ['gate', true],
      ['up', true],
    ]);
  });
});
