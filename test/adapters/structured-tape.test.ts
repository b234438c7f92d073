// The steps over blocks and features: gradients against differences, values against their definition.
import { describe, expect, it } from 'vitest';
import type { Value } from '../../lib/autograd/gradient-tape.js';
import { Tape } from '../../lib/autograd/tape.js';
import {
  checkGradients,
  devices,
  FeatureMap,
  memoryUsage,
  scope,
  Tensor,
} from '../../lib/index.js';
import { leadingTriplets } from '../../lib/linalg/tensors/triplets.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

const wave = (shape: readonly number[], phase: number, device = 'reference' as const): Tensor => {
  const size = shape.reduce((product, dim) => product * dim, 1);
  const values = Float32Array.from({ length: size }, (_, i) => Math.sin(1.7 * i + phase));
  return Tensor.from(values, shape, { device });
};

type Inputs = Readonly<Record<string, readonly number[]>>;
type Step = (t: Tape, v: Readonly<Record<string, Value>>) => Value;

/** One step, its inputs' shapes, and the map that it takes. */
const STEPS: Readonly<Record<string, readonly [Inputs, Step, (() => FeatureMap)?]>> = {
  transpose: [{ a: [3, 5] }, (t, { a }) => t.transpose(a as Value)],
  'transpose of a tall one': [{ a: [5, 2] }, (t, { a }) => t.transpose(a as Value)],
  slice: [{ a: [2, 3, 6] }, (t, { a }) => t.slice(a as Value, 1, 4)],
  concat: [
    { a: [3, 2], b: [3, 4], c: [3, 1] },
    (t, { a, b, c }) => t.concat([a as Value, b as Value, c as Value]),
  ],
  'repeat, inner': [{ a: [3, 4] }, (t, { a }) => t.repeat(a as Value, 3, 'inner')],
  'repeat, outer': [{ a: [3, 4] }, (t, { a }) => t.repeat(a as Value, 3, 'outer')],
  groupSum: [{ a: [3, 6] }, (t, { a }) => t.groupSum(a as Value, 2)],
  blockMatmul: [
    { x: [3, 2, 4], w: [2, 5, 4] },
    (t, { x, w }) => t.blockMatmul(x as Value, w as Value),
  ],
  blockProduct: [
    { x: [3, 2, 5], w: [2, 5, 4] },
    (t, { x, w }) => t.blockProduct(x as Value, w as Value),
  ],
  blockTransposeProduct: [
    { a: [3, 2, 4], b: [3, 2, 5] },
    (t, { a, b }) => t.blockTransposeProduct(a as Value, b as Value),
  ],
  blockInverse: [
    { q: [4, 2, 4] },
    (t, { q }) => {
      // Near the identity: 5 I + q.
      const eye = Tensor.from(
        Float32Array.from({ length: 32 }, (_, i) => (Math.floor(i / 8) === i % 4 ? 5 : 0)),
        [4, 2, 4],
        { device: 'reference' },
      );
      const a = t.add(q as Value, t.own(eye));
      const start = Tensor.from(
        a.tensor.readSync().map((v) => v / 100),
        [4, 2, 4],
        { device: 'reference' },
      );
      return t.blockInverse(a, start, 14);
    },
  ],
};

describe('gradients of the steps', () => {
  it.each(Object.keys(STEPS))('%s', (name) => {
    const before = memoryUsage('reference').liveTensors;
    scope(() => {
      const [shapes, step] = STEPS[name] as (typeof STEPS)[string];
      const inputs = Object.fromEntries(
        Object.entries(shapes).map(([input, shape], i) => [input, wave(shape, i)]),
      );
      const run = (at: Readonly<Record<string, Tensor>>) => {
        const t = new Tape();
        const values = Object.fromEntries(
          Object.entries(at).map(([input, tensor]) => [input, t.variable(tensor)]),
        );
        return { t, values, y: step(t, values) };
      };
      const reports = checkGradients({
        inputs,
        step: 1 / 32,
        forward: (at) => run(at).y.tensor,
        backward: (dy, at) => {
          const { t, values, y } = run(at);
          const names = Object.keys(values);
          const wanted = names.map((input) => values[input] as Value);
          const found = t.gradients('test', y, dy, wanted);
          t.dispose();
          return Object.fromEntries(names.map((input, i) => [input, found[i] as Tensor]));
        },
      });
      expect(reports.length).toBe(Object.keys(shapes).length);
      expect(reports.filter(({ passed }) => !passed)).toEqual([]);
    });
    expect(memoryUsage('reference').liveTensors).toBe(before);
  });

  it('features, with a summand, factors of both and another dtype', () => {
    scope(() => {
      const map = new FeatureMap({
        inFeatures: 5,
        outFeatures: 3,
        lists: [[0, 4], [], [1, 4, 2]],
        device: 'reference',
      });
      const inputs = { a: wave([4, 5], 1), plus: wave([4, 3], 2) };
      const run = (at: Readonly<Record<string, Tensor>>) => {
        const t = new Tape();
        const a = t.variable(at.a as Tensor);
        const plus = t.variable(at.plus as Tensor);
        return { t, a, plus, y: t.features(a, map, { alpha: 1.5, beta: -0.5, plus }) };
      };
      const reports = checkGradients({
        inputs,
        forward: (at) => run(at).y.tensor,
        backward: (dy, at) => {
          const { t, a, plus, y } = run(at);
          const [da, dPlus] = t.gradients('test', y, dy, [a, plus]);
          return { a: da as Tensor, plus: dPlus as Tensor };
        },
      });
      expect(reports.filter(({ passed }) => !passed)).toEqual([]);
      const t = new Tape();
      const half = t.variable(inputs.a.to({ dtype: 'bf16' }));
      const y = t.features(half, map, { dtype: 'f32' });
      expect(y.tensor.dtype).toBe('f32');
      const [da] = t.gradients('test', y, wave([4, 3], 3), [half]);
      expect(da?.dtype).toBe('bf16');
    });
  });

  it('a projection that gradients pass straight through', () => {
    scope(() => {
      const t = new Tape();
      const of = t.variable(wave([3], 1));
      const y = t.straightThrough(of, Tensor.from([1, 2, 3], [3], { device: 'reference' }));
      const dy = wave([3], 5);
      const [gradient] = t.gradients('test', y, dy, [of]);
      expect(y.tensor.readSync()).toEqual(Float32Array.from([1, 2, 3]));
      expect(gradient?.readSync()).toEqual(dy.readSync());
    });
  });
});

describe.each(available)('the leading singular triplets, on %s', (device) => {
  it('are those that the matrix was made of', () => {
    scope(() => {
      // u_i s_i v_iᵀ with cosines of different frequencies, which are orthogonal.
      const [N, K, r] = [24, 32, 3];
      const column = (n: number, i: number, f: number): number =>
        Math.sqrt(2 / n) * Math.cos((Math.PI / n) * (i + 0.5) * f);
      const sizes = [9, 5, 2, 0.5, 0.1];
      const w = Float32Array.from({ length: N * K }, (_, at) =>
        sizes.reduce(
          (sum, s, i) => sum + s * column(N, Math.floor(at / K), i + 1) * column(K, at % K, i + 2),
          0,
        ),
      );
      const found = leadingTriplets(Tensor.from(w, [N, K], { device }), r, 3);
      expect([found.right.length, found.scaledLeft.length]).toEqual([r * K, r * N]);
      for (let i = 0; i < r; i++) {
        const sign = Math.sign((found.right[i * K] as number) * column(K, 0, i + 2));
        for (let k = 0; k < K; k++) {
          expect((found.right[i * K + k] as number) * sign).toBeCloseTo(column(K, k, i + 2), 5);
        }
        for (let n = 0; n < N; n++) {
          const expected = (sizes[i] as number) * column(N, n, i + 1);
          expect((found.scaledLeft[i * N + n] as number) * sign).toBeCloseTo(expected, 5);
        }
      }
    });
  });
});
