// The RDP accountant against closed sums, 45-digit quadrature, and exact (ε, δ) of the mechanisms.
import { describe, expect, it } from 'vitest';
import { noiseForPrivacy, privacyAccountant } from '../../lib/index.js';
import { sampledGaussianDivergence } from '../../lib/statistics/privacy/renyi.js';

/** log Σ exp(x) */
const logSum = (logs: readonly number[]): number => {
  const largest = Math.max(...logs);
  return largest + Math.log(logs.reduce((sum, log) => sum + Math.exp(log - largest), 0));
};

/** The divergence of an integer order as a sum over how often the example was taken. */
function closedDivergence(q: number, sigma: number, order: number): number {
  let choose = 0;
  const logs = Array.from({ length: order + 1 }, (_, k) => {
    if (k > 0) choose += Math.log((order - k + 1) / k);
    const taken = k * Math.log(q) + (order - k) * Math.log1p(-q);
    return choose + taken + (k * k - k) / (2 * sigma * sigma);
  });
  return logSum(logs) / (order - 1);
}

/** q, σ, α, and the divergence by quadrature with 45 digits. */
const RECORDED = [
  [0.01, 1.1, 1.1, 6.958851559370262e-5],
  [0.01, 1.1, 9.6, 0.0007460544321887292],
  [0.004, 0.7, 4.4, 0.0003324278339162449],
  [0.0001, 0.5, 1.1, 2.809844067500601e-7],
  [0.3, 6, 1.5, 0.0018932846493788303],
  [0.999, 2, 7.3, 0.9115808157269393],
  [1e-6, 30, 2.5, 1.3896607804589155e-15],
  [0.05, 0.2, 3.7, 42.14473725475934],
  [0.2, 0.05, 1.3, 253.02576904611888],
  [0.001, 0.3, 63.5, 345.759498414332],
] as const;

/** Φ(x) by the trapezoidal rule over the density, to 1e-12. */
function normalCdf(x: number): number {
  const [from, h] = [-40, 1e-3];
  let sum = 0;
  for (let z = from; z < x; z += h) {
    const end = Math.min(z + h, x);
    const f = (t: number) => Math.exp((-t * t) / 2);
    sum += ((end - z) / 6) * (f(z) + 4 * f((z + end) / 2) + f(end));
  }
  return sum / Math.sqrt(2 * Math.PI);
}

/** ∫ max(0, p(z) − e^ε q(z)) dz with densities from −60 to 60. */
function exactDelta(p: (z: number) => number, q: (z: number) => number, epsilon: number): number {
  const h = 1e-3;
  let sum = 0;
  for (let z = -60; z < 60; z += h) sum += Math.max(0, p(z) - Math.exp(epsilon) * q(z));
  return sum * h;
}

describe('the divergence', () => {
  it('equals the closed sum at integer orders', () => {
    for (const q of [0.001, 0.05, 0.4]) {
      for (const sigma of [0.4, 1, 3]) {
        for (const order of [2, 3, 8, 32, 63]) {
          const closed = closedDivergence(q, sigma, order);
          // Rounding of A near 1.
          const bound = 1e-11 * closed + 1e-13;
          const mine = sampledGaussianDivergence(q, sigma, order);
          expect(Math.abs(mine - closed), `${q} ${sigma} ${order}`).toBeLessThan(bound);
        }
      }
    }
  });

  it.each(RECORDED)('equals the quadrature: q %d, σ %d, α %d', (q, sigma, order, expected) => {
    const mine = sampledGaussianDivergence(q, sigma, order);
    expect(Math.abs(mine - expected)).toBeLessThan(2e-12 * expected);
  });

  it('is that of the Gaussian mechanism where every example is taken, and 0 where none is', () => {
    expect(sampledGaussianDivergence(1, 2, 5)).toBe(5 / 8);
    expect(sampledGaussianDivergence(0, 2, 5)).toBe(0);
    const near = sampledGaussianDivergence(1 - 1e-12, 2, 5);
    expect(Math.abs(near - 5 / 8)).toBeLessThan(1e-10);
  });
});

describe('privacyAccountant', () => {
  it('never claims less than the exact curve of the Gaussian mechanism', () => {
    // Balle and Wang, 2018, arXiv:1805.06530, theorem 8; n steps are one with 1 / √n of the noise.
    for (const [noise, steps] of [
      [1, 1],
      [4, 10],
      [20, 50],
    ] as const) {
      const { epsilon } = privacyAccountant({ sampleRate: 1, noise, steps, delta: 1e-5 });
      const s = noise / Math.sqrt(steps);
      const delta =
        normalCdf(1 / (2 * s) - epsilon * s) -
        Math.exp(epsilon) * normalCdf(-1 / (2 * s) - epsilon * s);
      expect(delta, `${noise}`).toBeLessThan(1e-5);
      expect(delta, `${noise}`).toBeGreaterThan(1e-6);
    }
  });

  it('never claims less than the exact curve of one sampled step', () => {
    const normal = (mean: number, sigma: number) => (z: number) =>
      Math.exp(-((z - mean) ** 2) / (2 * sigma * sigma)) / (sigma * Math.sqrt(2 * Math.PI));
    for (const [q, sigma] of [
      [0.05, 0.8],
      [0.3, 1.5],
    ] as const) {
      const without = normal(0, sigma);
      const shifted = normal(1, sigma);
      const mixed = (z: number) => (1 - q) * without(z) + q * shifted(z);
      const { epsilon } = privacyAccountant({ sampleRate: q, noise: sigma, steps: 1, delta: 1e-4 });
      expect(exactDelta(mixed, without, epsilon)).toBeLessThan(1e-4);
      expect(exactDelta(without, mixed, epsilon)).toBeLessThan(1e-4);
      expect(exactDelta(mixed, without, epsilon)).toBeGreaterThan(1e-6);
    }
  });

  it('grows with steps and sampling, and falls with noise', () => {
    const run = { sampleRate: 0.01, noise: 1, steps: 100, delta: 1e-5 };
    const { epsilon } = privacyAccountant(run);
    expect(privacyAccountant({ ...run, steps: 200 }).epsilon).toBeGreaterThan(epsilon);
    expect(privacyAccountant({ ...run, sampleRate: 0.02 }).epsilon).toBeGreaterThan(epsilon);
    expect(privacyAccountant({ ...run, noise: 2 }).epsilon).toBeLessThan(epsilon);
    expect(privacyAccountant({ ...run, steps: 0 }).epsilon).toBe(0);
  });

  it('rejects what is no run', () => {
    const run = { sampleRate: 0.01, noise: 1, steps: 100, delta: 1e-5 };
    const wrong = (change: object) => () => privacyAccountant({ ...run, ...change });
    expect(wrong({ sampleRate: 0 })).toThrow('sampleRate must be above 0 and at most 1, got 0');
    expect(wrong({ sampleRate: 1.5 })).toThrow('got 1.5');
    expect(wrong({ noise: 0 })).toThrow('noise must be from 0.05 to 1048576, got 0');
    expect(wrong({ noise: '1' })).toThrow('noise must be a number, got a string');
    expect(wrong({ steps: 1.5 })).toThrow('steps must be an integer');
    expect(wrong({ delta: 0 })).toThrow('delta must be above 0 and below 1, got 0');
    expect(wrong({ delta: undefined })).toThrow('delta must be a number, got undefined');
    expect(wrong({ orders: [] })).toThrow('orders must be at least one, got none');
    expect(wrong({ orders: [1] })).toThrow('orders[0] must be above 1');
    expect(wrong({ sums: 'google' })).toThrow('sums must be one of exact, opacus, dp-accounting');
    expect(wrong({ epsilon: 3 })).toThrow('epsilon');
    expect(() => privacyAccountant(undefined as never)).toThrow('sampleRate must be a number');
  });
});

describe('noiseForPrivacy', () => {
  it('finds the least noise that is enough', () => {
    for (const epsilon of [0.1, 0.5, 3, 8, 100]) {
      const run = { sampleRate: 0.02, steps: 500, delta: 1e-5 };
      const noise = noiseForPrivacy({ ...run, epsilon });
      expect(privacyAccountant({ ...run, noise }).epsilon).toBeLessThanOrEqual(epsilon);
      const less = privacyAccountant({ ...run, noise: noise * (1 - 1e-6) }).epsilon;
      expect(less).toBeGreaterThan(epsilon);
    }
  });

  it('rejects an epsilon that cannot be reached, and other nonsense', () => {
    const run = { sampleRate: 0.02, steps: 500, delta: 1e-5 };
    expect(() => noiseForPrivacy({ ...run, epsilon: 1e-4 })).toThrow('epsilon must be at least');
    expect(() => noiseForPrivacy({ ...run, epsilon: 0 })).toThrow('epsilon must be above 0, got 0');
    expect(() => noiseForPrivacy({ ...run, epsilon: Number.POSITIVE_INFINITY })).toThrow('finite');
    expect(() => noiseForPrivacy(run as never)).toThrow('epsilon must be a number, got undefined');
  });
});
