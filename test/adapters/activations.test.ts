// Activations on the tape: values and derivatives against float64, on every device.
import { describe, expect, it } from 'vitest';
import { activations } from '../../lib/adapters/methods/low-rank/activations.js';
import { devices, scope, Tape, Tensor } from '../../lib/index.js';
import { activationOracle, erf } from '../oracle/activations.js';

const available = devices()
  .filter((row) => row.available)
  .map(({ device }) => device);

// No value at a kink, and some far out.
const values = Float32Array.from({ length: 401 }, (_, i) => (i - 200.37) / 20).map((v, i) =>
  i === 0 ? -50 : i === 400 ? 50 : v,
);

describe('the oracle', () => {
  it.each([
    [0.1, 0.1124629160182849],
    [1, 0.8427007929497149],
    [2.4, 0.9993114861033549],
    [2.6, 0.9997639655834707],
    [4, 0.9999999845827421],
  ])('has erf(%d)', (x, y) => {
    expect(Math.abs(erf(x) - y)).toBeLessThan(1e-13);
    expect(erf(-x)).toBe(-erf(x));
  });

  it('knows the activations that the library has', () => {
    expect(Object.keys(activationOracle).sort()).toEqual(Object.keys(activations).sort());
  });
});

describe.each(Object.keys(activations))('%s', (name) => {
  it.each(available)('has its values and its derivative, on %s', (device) => {
    scope(() => {
      const tape = new Tape();
      const x = tape.variable(Tensor.from(values, [1, values.length], { device }));
      const y = activations[name]?.(tape, x);
      const f = activationOracle[name] as (v: number) => number;
      if (y === undefined) throw new Error(name);
      y.tensor.readSync().forEach((value, i) => {
        const at = values[i] as number;
        expect(Math.abs(value - f(at)), `f(${at})`).toBeLessThan(4e-6 * Math.max(1, Math.abs(at)));
      });
      const dy = Tensor.from(new Float32Array(values.length).fill(2), y.shape, { device });
      const [dx] = tape.gradients('activations', y, dy, [x]);
      (dx as Tensor).readSync().forEach((value, i) => {
        const at = values[i] as number;
        const slope = (f(at + 1e-5) - f(at - 1e-5)) / 1e-5;
        const bound = 1e-5 * Math.max(1, Math.abs(at));
        expect(Math.abs(value - slope), `f'(${at})`).toBeLessThan(bound);
      });
    });
  });
});

describe('constants of other libraries', () => {
  // torch 2.6: transformers' xIELU of bf16 parameters, PReLU, Hardswish, the root of softplus.
  it.each([
    ['xielu', [-3, -0.7, 0.4, 2.5], [0.14143097, -0.19257817, 0.328125, 6.2548828]],
    ['prelu', [-3, 2], [-0.75, 2]],
    ['hardswish', [-4, -1, 2, 5], [0, -0.333333, 1.666667, 5]],
    ['sqrtsoftplus', [-50, -16, 25], [1.3888e-11, 3.354626e-4, 5]],
  ] as const)('%s has them', (name, at, expected) => {
    scope(() => {
      const x = new Tape().variable(Tensor.from([...at], [1, at.length], { device: 'cpu' }));
      const y = activations[name]?.(new Tape(), x);
      y?.tensor.readSync().forEach((value, i) => {
        const want = expected[i] as number;
        expect(Math.abs(value - want)).toBeLessThanOrEqual(1e-5 * Math.abs(want));
      });
      expect(y?.shape).toEqual(x.shape);
    });
  });

  it('sqrtsoftplus has a slope of 0, not NaN, where f32 has nothing left of it', () => {
    scope(() => {
      const tape = new Tape();
      const x = tape.variable(Tensor.from([-500, -80], [1, 2], { device: 'cpu' }));
      const y = activations.sqrtsoftplus?.(tape, x);
      if (y === undefined) throw new Error('none');
      const dy = Tensor.from([1, 1], [1, 2], { device: 'cpu' });
      const [dx] = tape.gradients('activations', y, dy, [x]);
      const [far, near] = (dx as Tensor).readSync();
      expect(far).toBe(0);
      expect(Math.abs((near as number) / (0.5 * Math.exp(-40)) - 1)).toBeLessThan(1e-4);
    });
  });
});
