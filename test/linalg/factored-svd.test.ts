// The SVD of small matrices and of products of factors, against what defines it.
import { describe, expect, it } from 'vitest';
import { uniform } from '../../lib/core/random.js';
import { factoredSvd, rowBasis } from '../../lib/linalg/factored-svd.js';
import { rowDots, transposed } from '../../lib/linalg/rows.js';
import { smallSvd } from '../../lib/linalg/small-svd.js';

function drawn(length: number, seed: number): Float64Array {
  const next = uniform(seed);
  return Float64Array.from({ length }, () => next() - 0.5);
}

/** `uᵀ · diag(s) · v` */
function product(u: Float64Array, s: ArrayLike<number>, v: Float64Array, m: number, n: number) {
  const q = s.length;
  const scaled = u.map((value, i) => value * (s[Math.floor(i / m)] as number));
  return rowDots(transposed(scaled, q, m), m, transposed(v, q, n), n, q);
}

const most = (values: Float64Array): number =>
  values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);

const apart = (a: Float64Array, b: Float64Array): number =>
  most(a.map((value, i) => value - (b[i] as number)));

function expectOrthonormal(rows: Float64Array, q: number, n: number): void {
  const dots = rowDots(rows, q, rows, q, n);
  const eye = dots.map((_, i) => Number(i % (q + 1) === 0));
  expect(apart(dots, eye)).toBeLessThan(1e-13);
}

describe('smallSvd', () => {
  it.each([
    [1, 1],
    [5, 9],
    [9, 5],
    [40, 40],
  ])('of %i x %i values', (m, n) => {
    const a = drawn(m * n, m);
    const { u, s, v } = smallSvd(a, m, n);
    expect(s).toHaveLength(Math.min(m, n));
    expect([...s]).toEqual([...s].sort((x, y) => y - x));
    expectOrthonormal(u, s.length, m);
    expectOrthonormal(v, s.length, n);
    expect(apart(product(u, s, v, m, n), a)).toBeLessThan(1e-13);
  });

  it('has small values to many places', () => {
    // Rows of very different sizes: squares of the small ones would vanish beside those of the large ones.
    const n = 6;
    const scales = Float64Array.from({ length: n }, (_, i) => 10 ** (-3 * i));
    const a = drawn(n * n, 3);
    const orthogonal = rowBasis(a, n, n).basis;
    const rows = orthogonal.map((value, i) => value * (scales[Math.floor(i / n)] as number));
    const { s } = smallSvd(rows, n, n);
    s.forEach((value, i) => {
      expect(Math.abs(value / (scales[i] as number) - 1), String(i)).toBeLessThan(1e-12);
    });
  });

  it('of zeros, and of values at the ends of the range', () => {
    expect(smallSvd(new Float64Array(6), 2, 3).s).toHaveLength(0);
    for (const size of [5e-324, 1e-310, 1e150]) {
      const { s } = smallSvd(Float64Array.of(size, 0, 0, 0, 0, 0), 2, 3);
      expect([...s]).toEqual([size]);
    }
  });
});

describe('factoredSvd', () => {
  it.each([
    [3, 12, 8],
    [12, 9, 30],
    [30, 9, 12],
  ])('of %i factors', (R, N, K) => {
    const [left, right] = [drawn(R * N, 1), drawn(R * K, 2)];
    const dense = rowDots(transposed(left, R, N), N, transposed(right, R, K), K, R);
    const { u, s, v } = factoredSvd(left, right, R, N, K);
    expect(s).toHaveLength(Math.min(R, N, K));
    expectOrthonormal(u, s.length, N);
    expectOrthonormal(v, s.length, K);
    expect(apart(product(u, s, v, N, K), dense)).toBeLessThan(1e-13);
    const whole = smallSvd(dense, N, K).s;
    expect(apart(s, whole.slice(0, s.length))).toBeLessThan(1e-13);
    const two = factoredSvd(left, right, R, N, K, 2);
    expect(two.s).toEqual(s.slice(0, 2));
    for (let i = 0; i < s.length; i++) {
      const row = v.subarray(i * K, (i + 1) * K);
      expect(row).toContain(most(row));
    }
  });

  it('of factors that depend on each other', () => {
    const [N, K] = [7, 6];
    const one = drawn(N, 1);
    const left = Float64Array.from([
      ...one,
      ...one.map((value) => 2 * value),
      ...new Float64Array(N),
    ]);
    const { s } = factoredSvd(left, drawn(3 * K, 2), 3, N, K);
    expect(s.filter((value) => value > 1e-14)).toHaveLength(1);
  });
});
