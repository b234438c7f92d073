// Weighted Lloyd-Max and the choice of bits, against brute force.
import { describe, expect, it } from 'vitest';
import { planarToFloat32, Tensor } from '../../lib/index.js';
import { chooseBits } from '../../lib/quantizers/choose-bits.js';
import { lloydMax, WeightedSamples } from '../../lib/quantizers/lloyd-max.js';
import { quantizeRowLevels } from '../../lib/quantizers/row-levels.js';

const drawn = (count: number, seed: number) =>
  Float64Array.from(Tensor.randn([count], { seed, device: 'cpu' }).readSync());

/** The least error of `count` levels: the best of all ways to cut the sorted values into runs. */
function leastError(values: ArrayLike<number>, weights: ArrayLike<number>, count: number): number {
  const order = [...Array(values.length).keys()].sort(
    (i, j) => (values[i] as number) - (values[j] as number),
  );
  const costOf = (begin: number, end: number) => {
    const run = order.slice(begin, end);
    const mass = run.reduce((sum, i) => sum + (weights[i] as number), 0);
    const mean =
      run.reduce((sum, i) => sum + (weights[i] as number) * (values[i] as number), 0) / mass;
    return run.reduce(
      (sum, i) => sum + (weights[i] as number) * ((values[i] as number) - mean) ** 2,
      0,
    );
  };
  const n = order.length;
  let best = Array.from({ length: n + 1 }, (_, end) => (end === 0 ? 0 : Number.POSITIVE_INFINITY));
  for (let c = 0; c < count; c++) {
    best = best.map((_, end) => {
      let least = best[end] as number;
      for (let begin = 0; begin < end; begin++) {
        least = Math.min(least, (best[begin] as number) + costOf(begin, end));
      }
      return least;
    });
  }
  return best[n] as number;
}

const errorOf = (
  values: ArrayLike<number>,
  weights: ArrayLike<number>,
  levels: ArrayLike<number>,
) =>
  Array.from(values).reduce((sum, v, i) => {
    const own = Math.min(...Array.from(levels).map((level) => (v - level) ** 2));
    return sum + (weights[i] as number) * own;
  }, 0);

describe('lloydMax', () => {
  it.each([2, 4, 16])('%i levels: a fixed point, near the least error of all cuts', (count) => {
    for (let seed = 1; seed <= 8; seed++) {
      const values = drawn(60, seed);
      const weights = drawn(60, seed + 100).map((v) => v * v + 0.05);
      const { levels, error } = lloydMax(new WeightedSamples(values, weights), count);
      expect(Math.abs(error - errorOf(values, weights, levels))).toBeLessThan(1e-9);
      const least = leastError(values, weights, count);
      expect(error).toBeGreaterThan(least - 1e-9);
      expect(error).toBeLessThan(1.35 * least);
      // Each level is the weighted mean of the values nearest to it.
      levels.forEach((level, i) => {
        let [mass, moment] = [0, 0];
        values.forEach((v, at) => {
          const nearest = levels.reduce(
            (b, l, c) => (Math.abs(v - l) < Math.abs(v - (levels[b] as number)) ? c : b),
            0,
          );
          if (nearest !== i) return;
          mass += weights[at] as number;
          moment += (weights[at] as number) * v;
        });
        expect(Math.abs(level - moment / mass)).toBeLessThan(1e-9);
      });
    }
  });

  it('is exact where there are no more values than levels, and weights count', () => {
    const three = new WeightedSamples([1, -2, 5], [1, 1, 1]);
    expect(lloydMax(three, 4).error).toBe(0);
    const heavy = lloydMax(new WeightedSamples([0, 1, 10], [1, 3, 1]), 2);
    expect([...heavy.levels]).toEqual([0.75, 10]);
  });
});

describe('chooseBits', () => {
  const costsOf = (seed: number) => {
    const values = drawn(3, seed).map(Math.abs);
    return [1, 2, 4].map((bits, i) => (3 * (values[i] as number) + 1) / 4 ** bits);
  };

  it('costs no more than the step that does not fit above the least of all choices', () => {
    for (let seed = 1; seed <= 40; seed++) {
      const items = Array.from({ length: 6 }, (_, i) => ({
        costs: costsOf(10 * seed + i),
        sizes: [1, 2, 4].map((bits) => bits * (1 + (i % 3))),
      }));
      const budget = 16 + (seed % 12);
      const sum = (choice: readonly number[], of: 'costs' | 'sizes') =>
        choice.reduce((total, option, i) => total + (items[i]?.[of][option] as number), 0);
      const chosen = chooseBits('test', items, budget);
      expect(sum(chosen, 'sizes')).toBeLessThanOrEqual(budget);
      let least = Number.POSITIVE_INFINITY;
      for (let code = 0; code < 3 ** 6; code++) {
        const choice = items.map((_, i) => Math.floor(code / 3 ** i) % 3);
        if (sum(choice, 'sizes') <= budget) least = Math.min(least, sum(choice, 'costs'));
      }
      const largest = Math.max(
        ...items.map(({ costs }) => Math.max(...costs) - Math.min(...costs)),
      );
      expect(sum(chosen, 'costs')).toBeGreaterThan(least - 1e-12);
      expect(sum(chosen, 'costs') - least).toBeLessThanOrEqual(largest);
      // In most cases it is the least, or within a tenth.
      if (seed % 4 === 0) continue;
      expect(sum(chosen, 'costs'), String(seed)).toBeLessThan(1.5 * least);
    }
  });

  it('leaves out options that cost more than smaller ones, and refuses a budget that is too small', () => {
    const item = { costs: [3, 5, 1], sizes: [1, 2, 4] };
    expect(chooseBits('test', [item], 3)).toEqual([0]);
    expect(chooseBits('test', [item], 4)).toEqual([2]);
    expect(() => chooseBits('test', [item, item], 1)).toThrow(
      /budget must be at least 2 for the smallest options, got 1/,
    );
  });
});

describe('quantizeRowLevels', () => {
  const [N, K] = [24, 64];
  const values = Float32Array.from(
    drawn(N * K, 5),
    (v, at) => v * (0.02 + 0.2 * ((at % 7) / 7) * Math.floor(at / K)),
  );
  const how = { blocksize: 32, options: [1, 2, 4] };
  const errorAt = (budget: number) => {
    const { planes, bits } = quantizeRowLevels('test', values, N, K, { ...how, budget });
    const back = planarToFloat32(planes);
    const error = Math.hypot(...back.map((v, i) => v - (values[i] as number)));
    return { error, bits, planes };
  };

  it('spends the budget, on rows that are worth it, with less error for more', () => {
    let last = Number.POSITIVE_INFINITY;
    for (const budget of [1, 1.5, 2, 3, 4]) {
      const { error, bits } = errorAt(budget);
      const mean = bits.reduce((sum, b) => sum + b, 0) / N;
      expect(mean).toBeLessThanOrEqual(budget);
      expect(mean).toBeGreaterThan(budget - 0.25);
      expect(error).toBeLessThan(last);
      last = error;
    }
    const { bits } = errorAt(2);
    expect(bits[N - 1] as number).toBeGreaterThan(bits[0] as number);
    expect(() => errorAt(0.9)).toThrow(/budget must be at least/);
    expect(() =>
      quantizeRowLevels('test', values, N, K, { ...how, budget: 2, blocksize: 48 }),
    ).toThrow(/blocksize must be a divisor of the 64 features/);
  });

  it('levels have the least square error of the weight, and not of its scaled values', () => {
    const uneven = values.map((v, at) => v * (at % K < 32 ? 1 : 6));
    const { levels } = quantizeRowLevels('test', uneven, N, K, { ...how, budget: 2 });
    levels.forEach((row, n) => {
      const sums = [...row].map(() => [0, 0] as [number, number]);
      for (let i = n * K; i < (n + 1) * K; i++) {
        const begin = Math.floor(i / 32) * 32;
        const scale = Math.max(...uneven.slice(begin, begin + 32).map(Math.abs)) || 1;
        const v = (uneven[i] as number) / scale;
        const nearest = row.reduce(
          (b, l, c) => (Math.abs(v - l) < Math.abs(v - (row[b] as number)) ? c : b),
          0,
        );
        const own = sums[nearest] as [number, number];
        own[0] += scale * (uneven[i] as number);
        own[1] += scale * scale;
      }
      row.forEach((level, c) => {
        const [top, below] = sums[c] as [number, number];
        if (below > 0) expect(Math.abs(level - top / below), `${n} ${c}`).toBeLessThan(1e-5);
      });
    });
  });

  it('rounds to the level of its row that is nearest, through one table', () => {
    const { planes, levels } = quantizeRowLevels('test', values, N, K, { ...how, budget: 2 });
    const back = planarToFloat32(planes);
    values.forEach((value, i) => {
      const block = values.subarray(Math.floor(i / 32) * 32, Math.floor(i / 32) * 32 + 32);
      const scale = Math.max(...block.map(Math.abs));
      const row = levels[Math.floor(i / K)] as Float64Array;
      const nearest = row.reduce(
        (b, l) => (Math.abs(value / scale - l) < Math.abs(value / scale - b) ? l : b),
        Number.POSITIVE_INFINITY,
      );
      expect(Math.abs((back[i] as number) - scale * nearest)).toBeLessThan(2e-3 * scale);
    });
  });
});
