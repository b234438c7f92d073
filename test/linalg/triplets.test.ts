// Many singular triplets at once: of matrices that are made of known ones, by what defines them.
import { describe, expect, it } from 'vitest';
import { adapters, dequantize, devices, quantize, scope, Tensor } from '../../lib/index.js';
import { leadingTriplets } from '../../lib/linalg/tensors/triplets.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

/** Orthonormal: cosines of different frequencies. */
const column = (n: number, i: number, f: number): number =>
  Math.sqrt(2 / n) * Math.cos((Math.PI / n) * (i + 0.5) * f);

/** Σ sizes[f] · u_f · v_fᵀ */
const composed = (N: number, K: number, sizes: readonly number[]): Float32Array =>
  Float32Array.from({ length: N * K }, (_, at) =>
    sizes.reduce(
      (sum, s, f) => sum + s * column(N, Math.floor(at / K), f + 1) * column(K, at % K, f + 1),
      0,
    ),
  );

const dot = (a: Float64Array, i: number, b: Float64Array, j: number, n: number): number => {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += (a[i * n + k] as number) * (b[j * n + k] as number);
  return sum;
};

function unorthonormal(rows: Float64Array, r: number, n: number): number {
  let most = 0;
  for (let i = 0; i < r; i++)
    for (let j = 0; j <= i; j++)
      most = Math.max(most, Math.abs(dot(rows, i, rows, j, n) - (i === j ? 1 : 0)));
  return most;
}

/** The largest error of Σ scaledLeft_i · right_iᵀ. */
function distance(
  { right, scaledLeft }: { right: Float64Array; scaledLeft: Float64Array },
  w: Float32Array,
  r: number,
  [N, K]: readonly [number, number],
): number {
  let most = 0;
  for (let at = 0; at < N * K; at++) {
    const [n, k] = [Math.floor(at / K), at % K];
    let sum = 0;
    for (let i = 0; i < r; i++)
      sum += (scaledLeft[i * N + n] as number) * (right[i * K + k] as number);
    most = Math.max(most, Math.abs(sum - (w[at] as number)));
  }
  return most;
}

describe.each(available)('many singular triplets on %s', (device) => {
  it.each([
    ['tall', 96, 64, (f: number) => 3 * 0.8 ** f],
    ['wide', 64, 96, (f: number) => 3 * 0.8 ** f],
    ['square', 72, 72, (f: number) => 3 * 0.8 ** f],
    ['of pairs of values', 64, 96, (f: number) => 3 - 0.1 * Math.floor(f / 2)],
    ['of a low rank', 64, 96, (f: number) => (f < 5 ? 3 - f / 2 : 0)],
    ['of a low rank and tall', 96, 64, (f: number) => (f < 5 ? 3 - f / 2 : 0)],
  ] as const)('make up a matrix that is %s', (_, N, K, sizeOf) => {
    scope(() => {
      const r = 58;
      const sizes = Array.from({ length: r }, (_, f) => sizeOf(f));
      const values = composed(N, K, sizes);
      const w = Tensor.from(values, [N, K], { device });
      const found = leadingTriplets(w, r, 0);
      expect([found.right.length, found.scaledLeft.length]).toEqual([r * K, r * N]);
      expect(unorthonormal(found.right, r, K)).toBeLessThan(1e-7);
      expect(distance(found, values, r, [N, K])).toBeLessThan(3e-6);
      sizes.forEach((size, i) => {
        const got = Math.sqrt(dot(found.scaledLeft, i, found.scaledLeft, i, N));
        expect(Math.abs(got - size)).toBeLessThan(3e-6);
      });
      // Left vectors are as orthogonal as their values allow.
      const { scaledLeft } = found;
      for (let i = 0; i < r; i++)
        for (let j = 0; j < i; j++)
          expect(Math.abs(dot(scaledLeft, i, scaledLeft, j, N))).toBeLessThan(1e-5);
      const again = leadingTriplets(w, r, 0);
      expect(again).toEqual(found);
    });
  });

  it('are those of what a quantised weight decodes to', () => {
    scope(() => {
      const [N, K, r] = [64, 96, 60];
      const w = Tensor.from(composed(N, K, [3, 2, 1]), [N, K], { device });
      const packed = quantize(w, { format: 'nf4' });
      const values = dequantize(packed, { dtype: 'f32' }).readSync();
      const all = leadingTriplets(packed, 64, 0);
      expect(distance(all, values, 64, [N, K])).toBeLessThan(1e-5);
      const some = leadingTriplets(packed, r, 0);
      expect(some.right).toEqual(all.right.slice(0, r * K));
    });
  });

  it('start OSF at the base model, its factors orthonormal', () => {
    scope(() => {
      const [N, K] = [80, 60];
      const w = Tensor.randn([N, K], { seed: 4, device });
      const adapter = adapters.osf.create({ inFeatures: K, outFeatures: N, weight: w, rank: 9 });
      const merged = (adapter.merge(w).weight as Tensor).readSync();
      const values = w.readSync();
      const most = merged.reduce((worst: number, v: number, i: number) => {
        return Math.max(worst, Math.abs(v - (values[i] as number)));
      }, 0);
      expect(most).toBeLessThan(2e-5);
      const rows = (name: string, from: Readonly<Record<string, Tensor>>) =>
        Float64Array.from((from[name] as Tensor).readSync());
      const v = new Float64Array(60 * K);
      v.set(rows('vHigh', adapter.buffers));
      v.set(rows('vLow', adapter.parameters), 9 * K);
      expect(unorthonormal(v, 60, K)).toBeLessThan(1e-6);
      const [high, low] = [rows('sHigh', adapter.buffers), rows('sLow', adapter.parameters)];
      const s = [...high, ...low];
      expect(s).toEqual([...s].sort((a, b) => b - a));
    });
  });
});
