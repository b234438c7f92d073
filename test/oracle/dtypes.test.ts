import { describe, expect, it } from 'vitest';
import { decodeBits, encodeBits, roundTo, ulp } from './dtypes.js';
import { source } from './inputs.js';

describe('element types by definition', () => {
  it('rounds to f32 as Math.fround does, at every scale', () => {
    const from = source(1);
    for (let i = 0; i < 20_000; i++) {
      const value = (from.uniform() - 0.5) * 2 ** from.integer(-160, 130);
      expect(roundTo('f32', value)).toBe(Math.fround(value));
    }
    for (const value of [0, -0, 5e-324, 2 ** -150, 3.4028235677973366e38, Number.NaN]) {
      expect(roundTo('f32', value)).toBe(Math.fround(value));
    }
  });

  it.each([
    ['bf16', 1, 0x3f80],
    ['bf16', -2, 0xc000],
    ['bf16', 1 / 3, 0x3eab],
    ['bf16', 2 ** -133, 0x0001],
    ['bf16', 2 ** -134, 0x0000],
    ['bf16', 3.4e38, 0x7f80],
    ['bf16', -0, 0x8000],
    ['f16', 1, 0x3c00],
    ['f16', 1 / 3, 0x3555],
    ['f16', 65504, 0x7bff],
    ['f16', 65519.99, 0x7bff],
    ['f16', 65520, 0x7c00],
    ['f16', 2 ** -24, 0x0001],
    ['f16', 2 ** -25, 0x0000],
    ['f16', 1.5 * 2 ** -24, 0x0002],
    ['f16', 2.5 * 2 ** -24, 0x0002],
    ['f16', Number.NEGATIVE_INFINITY, 0xfc00],
  ] as const)('%s of %d is %i', (dtype, value, bits) => {
    expect(encodeBits(dtype, value)).toBe(bits);
  });

  it.each(['bf16', 'f16'] as const)('%s: decode and encode agree on every pattern', (dtype) => {
    let last = -1;
    for (let bits = 0; bits < 0x10000; bits++) {
      const value = decodeBits(dtype, bits);
      if (Number.isNaN(value)) continue;
      expect(encodeBits(dtype, value)).toBe(bits);
      if (bits < 0x7c00) expect(value).toBeGreaterThan(last);
      last = value;
    }
  });

  it('knows the distance between neighbours', () => {
    expect(ulp('f32', 1)).toBe(2 ** -23);
    expect(ulp('bf16', 3)).toBe(2 ** -6);
    expect(ulp('f16', 2 ** -20)).toBe(2 ** -24);
  });
});
