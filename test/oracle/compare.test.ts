// A comparator that never fails proves nothing: each is shown the bug that it is for.
import { describe, expect, it } from 'vitest';
import { bound, exact, mistrust, nmse, promised, roundTo, sameValues, U32 } from '../oracle.js';
import { normalMatrix, positiveMatrix } from './inputs.js';
import { type Matrix, map, matmul64, matrix } from './linear.js';

const x = normalMatrix(5, 64, 1);
const w = normalMatrix(7, 64, 2);
const truth = matmul64(x, w);
const rounded = (m: Matrix): Float64Array => m.data.map((value) => Math.fround(value));

/** a · b as a tensor core of sm_80 adds it, eight products at a time, with so many bits below the largest. */
function cutSum(a: Matrix, b: Matrix, bits: number): number {
  let sum = 0;
  for (let first = 0; first < a.data.length; first += 8) {
    const terms = [sum];
    let largest = exponentOf(sum);
    for (let k = first; k < first + 8; k++) {
      const [x, y] = [a.data[k] as number, b.data[k] as number];
      terms.push(x * y);
      if (x * y !== 0) largest = Math.max(largest, exponentOf(x) + exponentOf(y));
    }
    const unit = 2 ** (largest - bits);
    const whole = terms.reduce((total, term) => total + Math.trunc(term / unit) * unit, 0);
    const last = 2 ** (exponentOf(whole) - 23);
    sum = Math.trunc(whole / last) * last;
  }
  return sum;
}
const exponentOf = (value: number): number =>
  value === 0 ? -126 : Math.floor(Math.log2(Math.abs(value)));

describe('the comparator catches', () => {
  it('exact: one bit, -0 for 0, a wrong NaN, a missing value', () => {
    const values = Float64Array.of(1, 0, Number.NaN);
    expect(() => exact('y', values, values)).not.toThrow();
    expect(() => exact('y', [1 + 2 ** -52, 0, Number.NaN], values)).toThrow('y[0]');
    expect(() => exact('y', [1, -0, Number.NaN], values)).toThrow('y[1]');
    expect(() => exact('y', [1, 0, 0], values)).toThrow('y[2]');
    expect(() => exact('y', [1, 0], values)).toThrow('2 values');
    expect(() => sameValues('y', [1, -0, Number.NaN], values)).not.toThrow();
    expect(() => sameValues('y', [1, 1e-300, Number.NaN], values)).toThrow('y[1]');
  });

  it('bound: a right answer passes with a worst case well under the limit', () => {
    expect(bound('y', rounded(truth.value), truth).worst).toBeLessThan(1);
  });

  it('bound: one dropped product', () => {
    const wrong = rounded(truth.value);
    wrong[9] = (wrong[9] as number) - (x.data[64] as number) * (w.data[2 * 64] as number);
    expect(() => bound('y', wrong, truth)).toThrow('y[1, 2]');
  });

  it('bound: a product in bf16 passed off as f32', () => {
    const coarse = map(x, (value) => roundTo('bf16', value));
    expect(() => bound('y', rounded(matmul64(coarse, w).value), truth)).toThrow('u·P');
  });

  it('bound: an error just over c · u · P, and none just under', () => {
    const at = (c: number): Float64Array =>
      truth.value.data.map((value, i) => value + c * U32 * (truth.p.data[i] as number));
    expect(() => bound('y', at(15.9), truth)).not.toThrow();
    // Half an ulp of f32 is allowed on top.
    expect(() => bound('y', at(17.1), truth)).toThrow('limit 16');
    expect(() => bound('y', at(-17.1), truth)).toThrow('limit 16');
  });

  it('bound: a tensor core that cuts off four bits more than it does', () => {
    const K = 16_384;
    const a = map(positiveMatrix(1, K, 5), (value) => roundTo('f16', value));
    const b = map(positiveMatrix(1, K, 6), (value) => roundTo('f16', value));
    const sum = matmul64(a, b);
    const c = promised('cuda', { terms: K, dtype: 'f16', of: 'product' });
    const check = (bits: number) => bound('y', [cutSum(a, b, bits)], sum, { c });
    expect(check(24).worst).toBeGreaterThan(16);
    expect(check(24).worst).toBeLessThan(c / 2);
    expect(() => check(20)).toThrow('u·P');
  });

  it('bound: a bf16 result truncated instead of rounded', () => {
    const truncated = truth.value.data.map((value) => {
      const near = roundTo('bf16', value);
      return Math.abs(near) > Math.abs(value) ? roundTo('bf16', value - (near - value)) : near;
    });
    const nearest = truth.value.data.map((value) => roundTo('bf16', value));
    expect(() => bound('y', nearest, truth, { dtype: 'bf16' })).not.toThrow();
    expect(() => bound('y', truncated, truth, { dtype: 'bf16' })).toThrow('u·P');
  });

  it('bound: NaN or infinity where a number belongs, and a number where NaN belongs', () => {
    const wrong = rounded(truth.value);
    wrong[3] = Number.NaN;
    expect(() => bound('y', wrong, truth)).toThrow('NaN');
    wrong[3] = Number.POSITIVE_INFINITY;
    expect(() => bound('y', wrong, truth)).toThrow('Infinity');
    const nan = { value: matrix(1, 1, [Number.NaN]), p: matrix(1, 1, [1]) };
    expect(() => bound('y', [0], nan)).toThrow('not NaN');
    const overflow = { value: matrix(1, 1, [70000]), p: matrix(1, 1, [70000]) };
    expect(() => bound('y', [Number.POSITIVE_INFINITY], overflow, { dtype: 'f16' })).not.toThrow();
    expect(() => bound('y', [Number.NEGATIVE_INFINITY], overflow, { dtype: 'f16' })).toThrow();
    expect(() => bound('y', [Number.POSITIVE_INFINITY], overflow, { dtype: 'f32' })).toThrow();
  });

  it('mistrust: a reference of mostly zeros, and P = 0', () => {
    expect(() => mistrust('y', [0, 1, 2, 3])).not.toThrow();
    expect(() => mistrust('y', [0, 0, 2, 3])).toThrow('MISTRUSTED');
    expect(() => mistrust('y', [0, 0, 2, 3], { mostlyZeros: 'on purpose' })).not.toThrow();
    const nothing = { value: matrix(1, 2, [1, 2]), p: matrix(1, 2, [0, 1]) };
    expect(() => bound('y', [1, 2], nothing)).toThrow('P is 0');
    const zero = { value: matrix(1, 4, [0, 1, 2, 3]), p: matrix(1, 4, [0, 1, 2, 3]) };
    expect(() => bound('y', [0, 1, 2, 3], zero)).not.toThrow();
    expect(() => bound('y', [1e-30, 1, 2, 3], zero)).toThrow('expected 0');
    expect(() => bound('y', [0, 0], { value: matrix(1, 2), p: matrix(1, 2) })).toThrow(
      'MISTRUSTED',
    );
    expect(() => nmse('y', [0, 0], [0, 0], 1)).toThrow('MISTRUSTED');
  });

  it('nmse: drift over a whole tensor', () => {
    const drifted = truth.value.data.map((value) => value * 1.001);
    expect(nmse('y', rounded(truth.value), truth.value.data, 1e-12)).toBeLessThan(1e-14);
    expect(() => nmse('y', drifted, truth.value.data, 1e-7)).toThrow('nmse');
    expect(() => nmse('y', [Number.NaN, 2], [1, 2], 1)).toThrow('NaN');
    expect(() => nmse('y', [1], [1, 2], 1)).toThrow('1 values');
  });
});
