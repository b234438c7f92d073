// Products, bases and linear systems of rows in float64, by what defines them.
import { describe, expect, it } from 'vitest';
import { orthonormalise, rowDots, subtractProduct, transposed } from '../../lib/linalg/rows.js';
import { solveRows } from '../../lib/linalg/solve.js';

/** Values in ±1 from a seed. */
function numbers(count: number, seed: number): Float64Array {
  let state = seed;
  return Float64Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** `a · bᵀ`, one sum at a time. */
function dots(a: Float64Array, p: number, b: Float64Array, q: number, n: number): Float64Array {
  return Float64Array.from({ length: p * q }, (_, at) => {
    const [i, j] = [Math.floor(at / q), at % q];
    let sum = 0;
    for (let k = 0; k < n; k++) sum += (a[i * n + k] as number) * (b[j * n + k] as number);
    return sum;
  });
}

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((most, v, i) => Math.max(most, Math.abs(v - (b[i] as number))), 0);
const identity = (n: number) =>
  Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));

describe.each([
  [1, 1, 1],
  [2, 3, 4],
  [5, 5, 7],
  [7, 4, 1],
  [3, 0, 5],
  [17, 9, 33],
])('of %i, %i and %i', (p, q, n) => {
  const [a, b] = [numbers(p * n, 3), numbers(q * n, 4)];

  it('rows are multiplied', () => {
    expect(rowDots(a, p, b, q, n)).toEqual(dots(a, p, b, q, n));
    expect(transposed(transposed(a, p, n), n, p)).toEqual(a);
  });

  it('products are subtracted', () => {
    const c = numbers(p * q, 5);
    const expected = a.map((v, at) => {
      const [i, k] = [Math.floor(at / n), at % n];
      let sum = 0;
      for (let j = 0; j < q; j++) sum += (c[i * q + j] as number) * (b[j * n + k] as number);
      return v - sum;
    });
    const got = a.slice();
    subtractProduct(got, p, c, b, q, n);
    expect(worst(got, expected)).toBeLessThan(1e-14 * (q + 1));
  });
});

describe.each([1, 2, 16, 17, 50])('%i orthonormal rows', (p) => {
  const n = 53;
  it('span those before them, to the last digits', () => {
    const given = numbers(p * n, 7);
    // Nearly the same direction again and again: what is left of it is a millionth.
    for (let i = 1; i < p; i += 3) {
      for (let k = 0; k < n; k++) given[i * n + k] = 1 + 1e-6 * (given[i * n + k] as number);
    }
    const rows = given.slice();
    orthonormalise(rows, p, n);
    expect(worst(dots(rows, p, rows, p, n), identity(p))).toBeLessThan(1e-14);
    // Lower triangular: row i is made of the first i + 1.
    const parts = dots(given, p, rows, p, n);
    parts.forEach((v, at) => {
      const [i, j] = [Math.floor(at / p), at % p];
      if (j > i) expect(Math.abs(v)).toBeLessThan(1e-13);
      if (j === i) expect(v).toBeGreaterThan(0);
    });
  });

  it('leave those before `from` alone, and nothing of a row that they span', () => {
    const rows = numbers(p * n, 8);
    const from = Math.floor(p / 2);
    orthonormalise(rows.subarray(0, from * n), from, n);
    const before = rows.slice(0, from * n);
    if (from > 0) rows.set(rows.subarray(0, n), (p - 1) * n);
    orthonormalise(rows, p, n, from);
    expect(rows.subarray(0, from * n)).toEqual(before);
    const last = rows.subarray((p - 1) * n);
    if (from > 0) expect(last.every((v) => v === 0)).toBe(true);
    const kept = from > 0 ? p - 1 : p;
    expect(worst(dots(rows, kept, rows, kept, n), identity(kept))).toBeLessThan(1e-14);
  });
});

describe.each([
  [1, 1],
  [2, 3],
  [9, 4],
  [40, 33],
])('a system of %i unknowns, %i times', (n, m) => {
  it('is solved, with zeros on the diagonal too', () => {
    const v = numbers(n * n, 9);
    // A first pivot of zero, and rows that have to change places.
    if (n > 1) v[0] = 0;
    const w = numbers(m * n, 10);
    const x = solveRows(v.slice(), n, w, m);
    expect(worst(dots(x, m, v, n, n), w)).toBeLessThan(1e-10);
  });

  it('has no finite solution where rows are the same', () => {
    if (n === 1) return;
    const v = numbers(n * n, 9);
    v.copyWithin(n, 0, n);
    const x = solveRows(v, n, numbers(m * n, 10), m);
    const big = x.some((value) => !Number.isFinite(value) || Math.abs(value) > 1e10);
    expect(big).toBe(true);
  });
});
