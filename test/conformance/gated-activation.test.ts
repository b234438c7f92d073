// gatedActivation and its gradients of every kind against the formulas in float64, over the whole range of f32; the same
// bits on every device but reference, swiglu's for silu; the step on the tape.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  type Device,
  type DType,
  gatedActivation,
  gatedActivationBackward,
  ModelTape,
  scope,
  setThreads,
  swiglu,
  swigluBackward,
  type Tensor,
} from '../../lib/index.js';
import { clampedSilu64, GATES_64 } from '../oracle/gates.js';
import { source } from '../oracle/inputs.js';
import { exact, matrix, roundTo, ulp } from '../oracle.js';
import { DEVICES, DTYPES, tensorOf } from './operands.js';
import { within } from './swiglu-bounds.js';

/** The kinds whose y is linear in up. */
const KINDS = ['silu', 'gelu', 'gelu-tanh'] as const;
const GROUPS = DEVICES.flatMap((device) => KINDS.map((kind) => ({ device, kind })));

/** Where the functions turn, where they vanish, the joints of the formulas, denormals, and values of every size. */
function values(dtype: DType, count: number, seed: number): number[] {
  const from = source(seed);
  const tails = [1, 3, 5.5, 9, 12.9, 13.5, 14.5, 15.556, 15.557, 20, 40, 104].flatMap((x) => [
    x,
    -x,
  ]);
  const large = [1e4, 3e4].flatMap((x) => [x, -x]);
  const fixed = [0, -0, -0.7517916, -0.7524614, ulp(dtype, 0), -ulp(dtype, 0), ...tails, ...large];
  return Array.from({ length: count }, (_, i) => {
    const sign = from.uniform() < 0.5 ? -1 : 1;
    return roundTo(dtype, fixed[i] ?? sign * 2 ** (12 * from.uniform() - 8));
  });
}

const on = (list: readonly number[], device: Device, dtype: DType = 'f32'): Tensor =>
  tensorOf(matrix(1, list.length, Float64Array.from(list)), {
    dtype,
    device,
    shape: [list.length],
  });

describe.each(GROUPS)('$kind on $device', ({ device, kind }) => {
  const at = GATES_64[kind];

  it.each(DTYPES)('%s: values and gradients', async (dtype) => {
    await scope(async () => {
      const count = 5003;
      const g = values(dtype, count, 1);
      const [u, d] = [2, 3].map((seed) =>
        values(dtype, count, seed).map((value, i) => (i < 34 ? 1 : Math.sign(value) || 1)),
      ) as [number[], number[]];
      const [gate, up, dy] = [g, u, d].map((list) => on(list, device, dtype)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const y = gatedActivation(gate, up, { kind });
      const { dGate, dUp } = gatedActivationBackward(dy, gate, up, { kind });
      for (const tensor of [y, dGate, dUp]) {
        expect([tensor.shape, tensor.dtype, tensor.device]).toEqual([[count], dtype, device]);
      }
      const [ys, dGates, dUps] = await Promise.all([y.read(), dGate.read(), dUp.read()]);
      for (let i = 0; i < count; i++) {
        const [gi, ui, di] = [g[i], u[i], d[i]] as [number, number, number];
        const [value, slope] = at(gi);
        within(`y(${gi})`, dtype, ys[i] as number, value * ui, Math.abs(value));
        within(`dUp(${gi})`, dtype, dUps[i] as number, value * di, Math.abs(value));
        // Φ and φ are within 2^-38 of their values, and their sum crosses zero.
        const rounded = kind === 'gelu' ? 2 ** 10 : 1;
        const terms = rounded * (Math.abs(slope) + Math.abs(value / (gi || 1)) * (1 + gi * gi));
        within(`dGate(${gi})`, dtype, dGates[i] as number, slope * ui * di, terms);
      }
    });
  });

  it('vanishes far below zero, is the gate far above, and keeps what is not finite', async () => {
    await scope(async () => {
      const far = [-1e38, -1e6, -1000, 1000, 1e6, 1e38];
      const ones = far.map(() => 1);
      const y = await gatedActivation(on(far, device), on(ones, device), { kind }).read();
      expect([...y].map((value) => value + 0)).toEqual([0, 0, 0, 1000, 1e6, Math.fround(1e38)]);
      const back = gatedActivationBackward(on(ones, device), on(far, device), on(ones, device), {
        kind,
      });
      expect([...(await back.dGate.read())].map((v) => v + 0)).toEqual([0, 0, 0, 1, 1, 1]);
      const odd = on([Number.NaN, Infinity, 2], device);
      const kept = await gatedActivation(odd, on([1, 1, 1], device), { kind }).read();
      expect([...kept].slice(0, 2)).toEqual([Number.NaN, Infinity]);
      within('2', 'f32', kept[2] as number, at(2)[0], 2);
    });
  });

  it('has the same bits on every device but reference, for any number of threads', async () => {
    if (device === 'reference') return;
    await scope(async () => {
      const lists = [1, 2, 3].map((seed) => values('f32', 40_001, seed));
      const run = async (where: Device): Promise<Float32Array[]> => {
        const [gate, up, dy] = lists.map((list) => on(list, where)) as [Tensor, Tensor, Tensor];
        const { dGate, dUp } = gatedActivationBackward(dy, gate, up, { kind });
        const y = gatedActivation(gate, up, { kind });
        if (kind === 'silu') {
          exact('swiglu', await swiglu(gate, up).read(), await y.read());
          const both = swigluBackward(dy, gate, up);
          exact('swigluBackward', await both.dGate.read(), await dGate.read());
        }
        return Promise.all([y, dGate, dUp].map((tensor) => tensor.read()));
      };
      setThreads(1);
      const want = await run('cpu');
      for (const threads of [1, 2, 3, 8]) {
        setThreads(threads);
        for (const [i, got] of (await run(device)).entries()) {
          exact(`${threads} threads, ${i}`, got, want[i] as Float32Array);
        }
      }
      setThreads(2);
    });
  });
});

describe.each(DEVICES)('silu-clamped on %s', (device) => {
  const kind = 'silu-clamped';

  it.each(DTYPES)('%s: values and gradients', async (dtype) => {
    await scope(async () => {
      const count = 5003;
      // Both sides of every clamp, and what is on it.
      const near = [7, 7.5, 6.5, -7, -7.5, -6.5, 0, 200, -200].map((v) => roundTo(dtype, v));
      const draw = (seed: number): number[] =>
        values(dtype, count, seed).map((v, i) => near[(i * seed) % 23] ?? v);
      const [g, u, d] = [draw(1), draw(2), draw(3)] as [number[], number[], number[]];
      const [gate, up, dy] = [g, u, d].map((list) => on(list, device, dtype)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const y = await gatedActivation(gate, up, { kind }).read();
      const back = gatedActivationBackward(dy, gate, up, { kind });
      const [dGate, dUp] = [await back.dGate.read(), await back.dUp.read()];
      for (let i = 0; i < count; i++) {
        const [gi, ui, di] = [g[i], u[i], d[i]] as [number, number, number];
        const at = clampedSilu64(gi, ui);
        const name = `(${gi}, ${ui})`;
        within(`y${name}`, dtype, y[i] as number, at.y, 8 * Math.abs(at.y));
        within(`dUp${name}`, dtype, dUp[i] as number, at.byUp * di, Math.abs(at.byUp * di));
        const terms = 8 * (1 + Math.abs(gi)) * Math.abs(di) * (Math.abs(ui) + 1);
        within(`dGate${name}`, dtype, dGate[i] as number, at.byGate * di, terms);
      }
    });
  });

  it('has the bits of the CPU on every device but reference', async () => {
    if (device === 'reference') return;
    await scope(async () => {
      const lists = [1, 2, 3].map((seed) => values('f32', 40_001, seed));
      const run = async (where: Device) => {
        const [gate, up, dy] = lists.map((list) => on(list, where)) as [Tensor, Tensor, Tensor];
        const { dGate, dUp } = gatedActivationBackward(dy, gate, up, { kind });
        const y = gatedActivation(gate, up, { kind });
        return Promise.all([y, dGate, dUp].map((tensor) => tensor.read()));
      };
      const want = await run('cpu');
      for (const [i, got] of (await run(device)).entries())
        exact(`${i}`, got, want[i] as Float32Array);
    });
  });

  it('keeps NaN', async () => {
    await scope(async () => {
      const odd = on([Number.NaN, 1, 1], device);
      const other = on([1, Number.NaN, 1], device);
      const y = await gatedActivation(odd, other, { kind }).read();
      expect([...y].map(Number.isNaN)).toEqual([true, true, false]);
    });
  });
});

it.each([...KINDS, 'silu-clamped'] as const)(
  'the step of %s on the tape has the gradients of differences',
  (kind) => {
    scope(() => {
      const make = (seed: number): Tensor => {
        const data = values('f32', 60, seed).slice(36).map(Math.tanh);
        return tensorOf(matrix(3, 8, Float64Array.from(data)), { device: 'reference' });
      };
      const run = ({ gate, up }: Record<string, Tensor>) => {
        const t = new ModelTape();
        const inputs = [t.variable(gate as Tensor), t.variable(up as Tensor)] as const;
        return { t, inputs, y: t.gatedActivation(...inputs, kind) };
      };
      const reports = checkGradients({
        inputs: { gate: make(1), up: make(2) },
        forward: (inputs) => run(inputs).y.tensor,
        backward: (dy, given) => {
          const { t, inputs, y } = run(given);
          const [gate, up] = t.gradients('step', y, dy, [...inputs]) as [Tensor, Tensor];
          return { gate, up };
        },
      });
      expect(reports.map(({ passed }) => passed)).toEqual([true, true]);
    });
  },
);
