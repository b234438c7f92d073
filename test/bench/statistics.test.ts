/** The statistics of the harness against values worked out by hand. */

import { describe, expect, it } from 'vitest';
import { medianInterval, outliers, quantile, summarize } from '../../lib/bench/statistics.js';

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

describe('statistics', () => {
  it('takes quantiles between order statistics', () => {
    expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5);
    expect(quantile([4, 1, 3, 2], 0.1)).toBeCloseTo(1.3, 12); // 1 + 0.1 · 3 · (2 - 1)
    expect(quantile([10, 20, 30], 0.9)).toBeCloseTo(28, 12); // at 1.8
    expect(quantile([7], 0.9)).toBe(7);
    expect(quantile([], 0.5)).toBeNaN();
  });

  it('bounds the median by the binomial distribution', () => {
    // n, least and most of 1..n, P(both sides) from Pascal's triangle.
    const byHand: [number, number, number, number][] = [
      [1, 1, 1, 0],
      [2, 1, 2, 1 - 2 / 4],
      [5, 1, 5, 1 - 2 / 32],
      [6, 1, 6, 1 - 2 / 64],
      [9, 2, 8, 1 - (2 * (1 + 9)) / 512],
      [10, 2, 9, 1 - (2 * (1 + 10)) / 1024],
      [12, 3, 10, 1 - (2 * (1 + 12 + 66)) / 4096],
      [20, 6, 15, 1 - (2 * (1 + 20 + 190 + 1140 + 4845 + 15504)) / 2 ** 20],
    ];
    for (const [n, low, high, confidence] of byHand) {
      const interval = medianInterval(upTo(n).reverse());
      expect([n, interval.low, interval.high]).toEqual([n, low, high]);
      expect(interval.confidence).toBeCloseTo(confidence, 10);
    }
    // The table of every textbook: 10th and 21st of 30.
    expect(medianInterval(upTo(30))).toMatchObject({ low: 10, high: 21 });
    expect(medianInterval([]).confidence).toBe(0);
  });

  it('covers the median as often as it says', () => {
    // A skewed distribution with median ln 2, from a small generator of this test's own.
    let state = 12345;
    const uniform = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state + 0.5) / 2 ** 32;
    };
    const runs = 4000;
    let covered = 0;
    for (let run = 0; run < runs; run++) {
      const { low, high } = medianInterval(Array.from({ length: 15 }, () => -Math.log(uniform())));
      if (low <= Math.LN2 && Math.LN2 <= high) covered++;
    }
    const { confidence } = medianInterval(upTo(15));
    expect(confidence).toBeCloseTo(1 - (2 * (1 + 15 + 105 + 455)) / 2 ** 15, 10);
    expect(Math.abs(covered / runs - confidence)).toBeLessThan(0.012); // four standard deviations
  });

  it('counts what lies outside the fences', () => {
    // Quartiles of 1..8 and 100 are 3 and 7: fences at -3 and 13.
    expect(outliers([...upTo(8), 100])).toBe(1);
    expect(outliers([...upTo(8), 13])).toBe(0);
    expect(outliers([-50, ...upTo(8), 13, 99])).toBe(2);
    expect(outliers([5, 5, 5, 5])).toBe(0);
  });

  it('sums up', () => {
    expect(summarize([3, 1, 2])).toEqual({
      samples: 3,
      median: 2,
      p10: 1.2,
      p90: 2.8,
      interval: { low: 1, high: 3, confidence: 0.75 },
      outliers: 0,
    });
  });
});
