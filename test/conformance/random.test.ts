// Tensor.randn and Tensor.uniform: the documented formula, the same bits everywhere, and the
// statistics of what they claim to be.
import { describe, expect, it } from 'vitest';
import { scope, Tensor } from '../../lib/index.js';
import { exact, philoxDraw, roundTo } from '../oracle.js';
import { DEVICES, DTYPES } from './operands.js';

/** Box–Muller of two draws of the normal stream: elements 2i and 2i + 1 are cosine and sine. */
function normal64(seed: number, index: number): number {
  const first = index - (index % 2);
  const radius = Math.sqrt(-2 * Math.log((philoxDraw(seed, first, 2) + 1) / 2 ** 32));
  const turn = (2 * Math.PI * philoxDraw(seed, first + 1, 2)) / 2 ** 32;
  return radius * (index % 2 === 0 ? Math.cos(turn) : Math.sin(turn));
}

/** Φ(z), Abramowitz and Stegun 7.1.26 (error below 1.5e-7). */
function normalCdf(z: number): number {
  const t = 1 / (1 + (0.3275911 * Math.abs(z)) / Math.SQRT2);
  const poly =
    t *
    (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  const tail = 0.5 * poly * Math.exp((-z * z) / 2);
  return z < 0 ? tail : 1 - tail;
}

describe.each(DEVICES)('random tensors on %s', (device) => {
  it.each([0, 1, 12345, 2 ** 32, 2 ** 53 - 1])('seed %d follows the formula', async (seed) => {
    await scope(async () => {
      const values = await Tensor.randn([37, 11], { seed, std: 0.5, mean: 2, device }).read();
      values.forEach((value, i) => {
        const expected = 2 + 0.5 * normal64(seed, i);
        expect(Math.abs(value - expected)).toBeLessThanOrEqual(
          2 ** -22 * Math.abs(expected) + 1e-7,
        );
      });
      const flat = await Tensor.uniform([100], { seed, low: -3, high: 5, device }).read();
      flat.forEach((value, i) => {
        const unit = (2 * philoxDraw(seed, i, 3) + 1) / 2 ** 32 - 1;
        expect(Math.abs(value - (1 + 4 * unit))).toBeLessThanOrEqual(5 * 2 ** -23);
      });
    });
  });

  it('element i depends on the seed and i only', async () => {
    await scope(async () => {
      const short = await Tensor.randn([101], { seed: 5, device }).read();
      const long = await Tensor.randn([3, 1001], { seed: 5, device }).read();
      exact('prefix', long.subarray(0, 101), short);
      const other = await Tensor.randn([101], { seed: 6, device }).read();
      expect(other).not.toEqual(short);
    });
  });

  it('narrower dtypes are the same numbers, rounded once', async () => {
    await scope(async () => {
      const wide = await Tensor.randn([5000], { seed: 8, device }).read();
      for (const dtype of ['bf16', 'f16'] as const) {
        const narrow = await Tensor.randn([5000], { seed: 8, dtype, device }).read();
        // The double is rounded once, so an f32 value on a tie may go the other way.
        let ties = 0;
        narrow.forEach((value, i) => {
          if (value !== roundTo(dtype, wide[i] as number)) ties += 1;
        });
        expect(ties).toBeLessThan(5);
      }
    });
  });

  it('200,000 normal values: mean, variance, skew, kurtosis and distribution', async () => {
    await scope(async () => {
      const n = 200_000;
      const values = await Tensor.randn([n], { seed: 11, device }).read();
      const moment = (power: number): number =>
        values.reduce((sum, value) => sum + value ** power, 0) / n;
      expect(Math.abs(moment(1)) * Math.sqrt(n)).toBeLessThan(5);
      expect(Math.abs(moment(2) - 1) / Math.sqrt(2 / n)).toBeLessThan(5);
      expect(Math.abs(moment(3)) / Math.sqrt(15 / n)).toBeLessThan(5);
      expect(Math.abs(moment(4) - 3) / Math.sqrt(96 / n)).toBeLessThan(5);
      const sorted = Float64Array.from(values).sort();
      let distance = 0;
      sorted.forEach((value, i) => {
        distance = Math.max(distance, Math.abs(normalCdf(value) - (i + 0.5) / n));
      });
      // Kolmogorov: 2.5 / sqrt(n) is exceeded with probability under 1e-5.
      expect(distance).toBeLessThan(2.5 / Math.sqrt(n));
      let product = 0;
      for (let i = 1; i < n; i++) product += (values[i] as number) * (values[i - 1] as number);
      expect(Math.abs(product) / Math.sqrt(n)).toBeLessThan(5);
    });
  });

  it('uniform values fill their range evenly', async () => {
    await scope(async () => {
      const n = 64_000;
      const values = await Tensor.uniform([n], { seed: 4, low: 2, high: 3, device }).read();
      const bins = new Float64Array(64);
      for (const value of values) {
        expect(value >= 2 && value <= 3).toBe(true);
        const bin = Math.min(63, Math.floor((value - 2) * 64));
        bins[bin] = (bins[bin] as number) + 1;
      }
      const chi = bins.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
      expect(Math.abs(chi - 63) / Math.sqrt(126)).toBeLessThan(5);
    });
  });
});

describe('random tensors across devices', () => {
  it.each(DTYPES)('%s: the same bits', async (dtype) => {
    await scope(async () => {
      const [first, ...rest] = DEVICES;
      for (const kind of ['randn', 'uniform'] as const) {
        const draw = (device: (typeof DEVICES)[number]): Promise<Float32Array> =>
          Tensor[kind]([999], { seed: 21, dtype, device }).read();
        const expected = await draw(first as (typeof DEVICES)[number]);
        for (const device of rest) exact(`${kind} ${device}`, await draw(device), expected);
      }
    });
  });
});
