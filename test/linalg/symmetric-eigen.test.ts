// Eigenvalues and vectors of small symmetric matrices, by what defines them.
import { describe, expect, it } from 'vitest';
import { symmetricEigen } from '../../lib/linalg/symmetric-eigen.js';

/** Values in ±1 from a seed. */
function numbers(count: number, seed: number): Float64Array {
  let state = seed;
  return Float64Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** `qᵀ · diag(values) · q` of rows q. */
function compose(q: Float64Array, values: ArrayLike<number>, n: number): Float64Array {
  return Float64Array.from({ length: n * n }, (_, at) => {
    const [i, j] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let k = 0; k < n; k++) {
      sum += (values[k] as number) * (q[k * n + i] as number) * (q[k * n + j] as number);
    }
    return sum;
  });
}

/** An orthogonal matrix: a product of reflections. */
function orthogonal(n: number, seed: number): Float64Array {
  const q = Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
  for (let k = 0; k < n; k++) {
    const u = numbers(n, seed + k);
    const square = u.reduce((sum, v) => sum + v * v, 0);
    for (let i = 0; i < n; i++) {
      let dot = 0;
      for (let j = 0; j < n; j++) dot += (q[i * n + j] as number) * (u[j] as number);
      for (let j = 0; j < n; j++) {
        q[i * n + j] = (q[i * n + j] as number) - ((2 * dot) / square) * (u[j] as number);
      }
    }
  }
  return q;
}

const worst = (a: Float64Array, b: Float64Array): number =>
  a.reduce((most, v, i) => Math.max(most, Math.abs(v - (b[i] as number))), 0);

const SPECTRA: Readonly<Record<string, (i: number, n: number) => number>> = {
  spread: (i, n) => n - 2 * i + 0.5,
  'over ten orders of magnitude': (i, n) => 10 ** ((-10 * i) / n),
  'of rank one': (i) => (i === 0 ? 3 : 0),
  'of pairs': (i) => 4 - Math.floor(i / 2),
  zero: () => 0,
  huge: (i) => 1e150 / (i + 1),
  tiny: (i) => 1e-150 / (i + 1),
};

describe('symmetricEigen', () => {
  // From 65 on by tridiagonalisation.
  describe.each([1, 2, 3, 8, 17, 64, 65, 66, 130])('n = %i', (n) => {
    it.each(Object.keys(SPECTRA))('finds a spectrum that is %s', (name) => {
      const given = Float64Array.from({ length: n }, (_, i) => SPECTRA[name]?.(i, n) as number);
      const largest = Math.max(...given.map(Math.abs));
      const a = compose(orthogonal(n, 7), given, n);
      const { values, vectors } = symmetricEigen(a, n);
      // Roundings of n rotations of each row, and of the products here.
      const bound = (16 + 4 * n) * 2 ** -52;
      expect(
        worst(
          values,
          given.slice().sort((p, q) => q - p),
        ),
      ).toBeLessThanOrEqual(bound * largest);
      expect(worst(compose(vectors, values, n), a)).toBeLessThanOrEqual(bound * largest);
      const identity = compose(vectors, new Float64Array(n).fill(1), n);
      expect(
        worst(
          identity,
          Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
        ),
      ).toBeLessThanOrEqual(bound);
    });
  });

  it('reads the upper triangle and leaves its operand alone', () => {
    const a = Float64Array.of(2, 1, Number.NaN, 2);
    const { values } = symmetricEigen(a, 2);
    expect([...values].map((v) => Math.round(v * 1e12) / 1e12)).toEqual([3, 1]);
    expect([...a]).toEqual([2, 1, Number.NaN, 2]);
  });

  it('refuses what is no matrix of numbers', () => {
    expect(() => symmetricEigen(new Float64Array(5), 2)).toThrow(/of 4 values, got 5/);
    expect(() => symmetricEigen(Float64Array.of(1, Number.NaN, 0, 1), 2)).toThrow(/finite/);
    expect(() => symmetricEigen(Float64Array.of(Number.POSITIVE_INFINITY), 1)).toThrow(/finite/);
  });
});
