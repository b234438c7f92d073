import { describe, expect, it } from 'vitest';
import { normalMatrix } from './inputs.js';
import {
  codebookOf,
  dequantiseBlocks,
  encodeNormalised,
  NF4_LEVELS,
  nestAbsmax,
  ORACLE_FORMATS,
  packNibbles,
  quantiseBlocks,
  unnestAbsmax,
  unpackNibbles,
  zeroCodeOf,
} from './quantise.js';

/** Quantile of the standard normal, by bisection of its distribution function. */
function normalQuantile(probability: number): number {
  // Φ(z) by Simpson's rule from 0: smooth, so 2,000 intervals give full precision.
  const phi = (z: number): number => {
    const n = 2000;
    const h = z / n;
    let sum = 1 + Math.exp((-z * z) / 2);
    for (let i = 1; i < n; i++) sum += (i % 2 === 0 ? 2 : 4) * Math.exp(-((i * h) ** 2) / 2);
    return 0.5 + (sum * h) / 3 / Math.sqrt(2 * Math.PI);
  };
  let low = -5;
  let high = 5;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (phi(middle) < probability) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

describe('code books', () => {
  it('NF4: quantiles of the normal distribution, 8 above zero and 7 below, scaled to 1', () => {
    const offset = 0.9677083;
    const spread = (count: number): number[] =>
      Array.from({ length: count }, (_, i) => offset + ((0.5 - offset) * i) / count);
    const above = spread(8).map(normalQuantile);
    const below = spread(7).map((probability) => -normalQuantile(probability));
    const levels = [...below, 0, ...above].sort((a, b) => a - b);
    const scale = Math.max(...levels);
    levels.forEach((level, i) => {
      expect(level / scale).toBeCloseTo(NF4_LEVELS[i] as number, 5);
    });
  });

  it('FP4: sign, two exponent bits, one mantissa bit', () => {
    const book = codebookOf('fp4');
    for (let code = 0; code < 16; code++) {
      const exponent = (code >> 1) & 3;
      const mantissa = code & 1;
      // Codes in the peer's bit order: exponent 00 is subnormal, then 8/12, 4/12, 2/12.
      const base = [0, 8 / 12, 4 / 12, 2 / 12][exponent] as number;
      const size = exponent === 0 ? (mantissa * 0.0625) / 12 : base * (1 + mantissa / 2);
      expect(book[code]).toBe(Math.fround((code >= 8 ? -1 : 1) * size) + 0);
    }
  });

  it('int8: 256 ascending levels, symmetric but for 1, with 0 and 1', () => {
    const book = codebookOf('int8');
    expect(book.length).toBe(256);
    for (let i = 1; i < 256; i++) expect(book[i]).toBeGreaterThan(book[i - 1] as number);
    expect(book[127]).toBe(0);
    expect(book[255]).toBe(1);
    for (let i = 1; i < 127; i++) expect(book[127 + i]).toBe(-(book[127 - i] as number));
  });
});

describe.each(ORACLE_FORMATS)('quantisation to %s', (format) => {
  const book = codebookOf(format);
  const values = Float64Array.from(normalMatrix(13, 37, 5).data, Math.fround);

  it('a level is its own code, and no other level is nearer', () => {
    book.forEach((level, code) => {
      const back = encodeNormalised(format, level);
      expect((book[back] as number) + 0).toBe(level + 0);
      if (level !== 0) expect(back).toBe(code);
    });
    const { codes, absmax } = quantiseBlocks(values, format, 64);
    values.forEach((value, i) => {
      const scale = absmax[Math.floor(i / 64)] as number;
      const error = (code: number): number => Math.abs((book[code] as number) * scale - value);
      const best = Math.min(...Array.from(book, (_, code) => error(code)));
      expect(error(codes[i] as number)).toBeLessThanOrEqual(best + 1e-6 * scale);
    });
  });

  it('a block of zeros is zeros again and the largest value is kept exactly', () => {
    const withZeros = values.slice();
    withZeros.fill(0, 64, 128);
    const quantised = quantiseBlocks(withZeros, format, 64);
    expect(new Set(quantised.codes.subarray(64, 128))).toEqual(new Set([zeroCodeOf(format)]));
    const back = dequantiseBlocks(quantised);
    expect(new Set(back.subarray(64, 128).map(Math.abs))).toEqual(new Set([0]));
    const tiny = quantiseBlocks(Float64Array.of(1e-40, -5e-41), format, 64);
    expect([tiny.absmax[0], ...tiny.codes]).toEqual([
      Math.fround(1e-40),
      zeroCodeOf(format),
      zeroCodeOf(format),
    ]);
    for (let block = 0; block * 64 < withZeros.length; block++) {
      const part = withZeros.subarray(block * 64, block * 64 + 64);
      const largest = Math.max(...part.map(Math.abs));
      expect(quantised.absmax[block]).toBe(largest);
      if (largest > 0 && part.includes(largest)) {
        expect(Math.max(...back.subarray(block * 64, block * 64 + 64))).toBe(largest);
      }
    }
  });
});

describe('packing and nesting', () => {
  it('nibbles round trip, the even element high, an odd tail padded', () => {
    const codes = Uint8Array.of(1, 2, 15, 0, 9);
    const packed = packNibbles(codes, 7);
    expect([...packed]).toEqual([0x12, 0xf0, 0x97]);
    expect(unpackNibbles(packed, 5)).toEqual(codes);
  });

  it('double quantisation keeps absmax to the width of a level', () => {
    const absmax = Float32Array.from(normalMatrix(1, 600, 3).data, (v) => 2 + 0.3 * v);
    const nested = nestAbsmax(absmax);
    expect(nested.nestedAbsmax.length).toBe(3);
    unnestAbsmax(nested).forEach((back, block) => {
      const width = 0.015 * (nested.nestedAbsmax[Math.floor(block / 256)] as number);
      expect(Math.abs(back - (absmax[block] as number))).toBeLessThan(width);
    });
  });
});
