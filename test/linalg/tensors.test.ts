// Decompositions of tensors: what defines them, their signs, the ways of large matrices, and what they reject.
import { describe, expect, it } from 'vitest';
import {
  cholesky,
  qr,
  quantize,
  scope,
  solveTriangular,
  svd,
  symmetricEigen,
  Tensor,
} from '../../lib/index.js';
import { choleskyRows, solveLower } from '../../lib/linalg/cholesky.js';
import { trailingTriplets } from '../../lib/linalg/tensors/triplets.js';
import { thinQr } from '../../lib/linalg/thin-qr.js';

/** Values in ±1 from a seed. */
function numbers(count: number, seed: number): Float64Array {
  let state = seed;
  return Float64Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const matrix = (N: number, K: number, seed: number) =>
  Tensor.from(Float32Array.from(numbers(N * K, seed)), [N, K], { device: 'cpu' });

/** a [n, p] · b [p, m] */
function times(a: ArrayLike<number>, b: ArrayLike<number>, n: number, p: number, m: number) {
  return Float64Array.from({ length: n * m }, (_, at) => {
    const [i, k] = [Math.floor(at / m), at % m];
    let sum = 0;
    for (let j = 0; j < p; j++) sum += (a[i * p + j] as number) * (b[j * m + k] as number);
    return sum;
  });
}

const turned = (a: ArrayLike<number>, n: number, m: number) =>
  Float64Array.from({ length: n * m }, (_, at) => a[(at % n) * m + Math.floor(at / n)] as number);

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((most, v, i) => Math.max(most, Math.abs(v - (b[i] as number))), 0);

const identity = (n: number) =>
  Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));

const code = (run: () => unknown): string => {
  try {
    scope(() => void run());
  } catch (error) {
    return `${(error as { code?: string }).code} ${(error as Error).message}`;
  }
  return 'no error';
};

describe('svd', () => {
  it('is the matrix again, by each of its ways', () => {
    scope(() => {
      const [N, K] = [40, 60];
      const w = matrix(N, K, 3);
      const { u, s, v } = svd(w);
      const scaled = u.readSync().map((x, at) => x * (s[at % N] as number));
      expect(worst(times(scaled, v.readSync(), N, N, K), w.readSync())).toBeLessThan(2e-6);
      const few = svd(w, { r: 3, iterations: 400 });
      const exact = svd(w, { r: 3, iterations: 'exact' });
      expect(worst(few.s, s.slice(0, 3))).toBeLessThan(1e-5);
      expect(worst(exact.s, s.slice(0, 3))).toBeLessThan(1e-12);
      expect(worst(few.v.readSync(), exact.v.readSync())).toBeLessThan(1e-4);
      const last = svd(w, { r: 2, which: 'smallest' });
      expect(worst(last.s, s.slice(-2))).toBeLessThan(1e-6);
    });
  });

  it('has the sign rule, whatever the seed', () => {
    scope(() => {
      const w = matrix(50, 40, 8);
      for (const seed of [0, 1, 2]) {
        const v = svd(w, { r: 4, seed, iterations: 300 }).v.readSync();
        for (let i = 0; i < 4; i++) {
          const row = v.subarray(i * 40, (i + 1) * 40);
          const largest = row.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
          expect(largest).toBeGreaterThan(0);
        }
      }
    });
  });

  it('takes a quantised weight as it is', () => {
    scope(() => {
      const w = quantize(matrix(64, 96, 5), { format: 'nf4' });
      const { s } = svd(w, { r: 2, iterations: 200 });
      expect(worst(s, svd(w, { r: 2, iterations: 'exact' }).s)).toBeLessThan(1e-4);
    });
  });

  it('finds the last triplets of a large matrix by inverse iteration', () => {
    scope(() => {
      for (const [N, K] of [
        [30, 44],
        [44, 30],
      ] as const) {
        const w = matrix(N, K, 4);
        const exact = trailingTriplets(w, 2, 0);
        const found = trailingTriplets(w, 2, 0, 8);
        const product = ({ scaledLeft, right }: typeof exact) =>
          times(turned(scaledLeft, 2, N), right, N, 2, K);
        expect(worst(product(found), product(exact))).toBeLessThan(1e-6);
      }
    });
  });
});

describe('qr, cholesky, solveTriangular, symmetricEigen', () => {
  it('qr: orthogonal, upper-triangular with a diagonal that is not negative, and the matrix again', () => {
    const [n, p] = [200, 24];
    for (const [name, columns] of [
      ['generic', numbers(n * p, 1)],
      ['graded', numbers(n * p, 2).map((x, at) => x * 10 ** -Math.floor(at / n))],
    ] as const) {
      const { q, r } = thinQr(columns, p, n);
      const unit = times(q, turned(q, p, n), p, n, p);
      expect(worst(unit, identity(p)), name).toBeLessThan(4e-15);
      expect(worst(times(turned(r, p, p), q, p, p, n), columns), name).toBeLessThan(1e-14);
      for (let i = 0; i < p; i++) expect(r[i * p + i]).toBeGreaterThanOrEqual(0);
    }
    const twice = Float64Array.from([...numbers(n, 1), ...numbers(n, 1), ...numbers(n, 2)]);
    const { q, r } = thinQr(twice, 3, n);
    expect(worst(times(turned(r, 3, 3), q, 3, 3, n), twice)).toBeLessThan(1e-14);
  });

  it('cholesky: the same with native products, and solves what it should', () => {
    const n = 300;
    const rows = numbers(n * n, 7);
    const a = times(rows, turned(rows, n, n), n, n, n).map(
      (v, at) => v + (at % (n + 1) === 0 ? 1 : 0),
    );
    const { l } = choleskyRows(a, n);
    const given = choleskyRows(a, n, (panel, m, p) => times(panel, turned(panel, m, p), m, p, m));
    expect(worst(given.l, l)).toBeLessThan(1e-11);
    expect(worst(times(l, turned(l, n, n), n, n, n), a)).toBeLessThan(1e-11);
    for (const transposed of [false, true]) {
      const x = numbers(n * 2, 9);
      const b = times(transposed ? turned(l, n, n) : l, x, n, n, 2);
      solveLower(l, n, b, 2, transposed);
      expect(worst(b, x)).toBeLessThan(1e-9);
    }
  });

  it('solves an upper triangle, and its transpose', () => {
    scope(() => {
      const u = Tensor.from([2, 1, 0, 4], [2, 2], { device: 'cpu' });
      const b = Tensor.from([4, 8], [2, 1], { device: 'cpu' });
      expect([...solveTriangular(u, b, { upper: true }).readSync()]).toEqual([1, 2]);
      expect([...solveTriangular(u, b, { upper: true, transposed: true }).readSync()]).toEqual([
        2, 1.5,
      ]);
    });
  });

  it('reject what they cannot do, with what they got', () => {
    scope(() => {
      const square = matrix(3, 3, 1);
      const on = (values: number[], shape: number[]) =>
        Tensor.from(values, shape, { device: 'cpu' });
      expect(code(() => cholesky(on([1, 2, 2, 1], [2, 2])))).toMatch(
        /^ERR_VALUE cholesky: a must be positive definite, got the pivot -3 at index 1$/,
      );
      expect(code(() => cholesky(matrix(2, 3, 1)))).toMatch(/^ERR_SHAPE .*square, got \[2, 3\]/);
      expect(code(() => qr(matrix(2, 3, 1)))).toMatch(
        /^ERR_SHAPE qr: a must be of at most as many/,
      );
      expect(code(() => svd(square, { r: 4 }))).toMatch(/^ERR_VALUE svd: r must be .*got 4/);
      expect(code(() => svd(square, { iterations: 0 }))).toMatch(/^ERR_VALUE svd: iterations/);
      expect(code(() => svd(square, { which: 'all' as 'largest' }))).toMatch(
        /^ERR_VALUE svd: which/,
      );
      expect(code(() => svd(on([1, Number.NaN, 0, 1], [2, 2])))).toMatch(
        /^ERR_(NON_FINITE|VALUE) /,
      );
      expect(code(() => symmetricEigen(on([1, 2, 3, 1], [2, 2])))).toMatch(
        /^ERR_VALUE .*symmetric, got 3 and 2/,
      );
      expect(code(() => symmetricEigen(on([1, 2, 3], [3])))).toMatch(/^ERR_SHAPE /);
      expect(code(() => solveTriangular(on([1, 0, 1, 0], [2, 2]), on([1, 1], [2, 1])))).toMatch(
        /^ERR_VALUE .*without zeros on its diagonal, got one at index 1/,
      );
      expect(code(() => solveTriangular(on([1, 0, 1, 1], [2, 2]), square))).toMatch(/^ERR_SHAPE /);
      expect(code(() => qr('a' as unknown as Tensor))).toMatch(/a must be a Tensor/);
    });
  });
});
