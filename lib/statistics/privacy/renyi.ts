/**
 * The Rényi divergence of one step of the Poisson-subsampled Gaussian mechanism.
 *
 * With u = q (e^((2z − 1) / 2σ²) − 1) and z ~ N(0, σ²), the moment of order α is A = E[(1 + u)^α], and the divergence is
 * log A / (α − 1) (Mironov, Talwar and Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism, 2019,
 * arXiv:1908.10530). E[u] = 0, so A − 1 = E[(1 + u)^α − 1 − α u], whose integrand is nowhere negative: no digits cancel,
 * however small the divergence is. The trapezoidal rule converges exponentially, because the integrand is analytic up to
 * |Im z| = π σ² and falls off like a normal density.
 */

/** Relative error of the trapezoidal rule: e^-kDigits. */
const kDigits = 40;

/** log((1 + u)^α − 1 − α u) for u = q (e^t − 1) and α > 1. */
function logExcess(t: number, q: number, order: number): number {
  const u = q * Math.expm1(t);
  if (Math.abs(order * u) < 0.1) {
    // Σ over k ≥ 2 of binomial(α, k) u^k
    let term = order * u;
    let sum = 0;
    for (let k = 2; k <= 24; k++) {
      term *= ((order - k + 1) / k) * u;
      sum += term;
    }
    return Math.log(sum);
  }
  // e^t may be above the largest number.
  const log = t > 30 ? Math.log(q) + t + Math.log1p(((1 - q) / q) * Math.exp(-t)) : Math.log1p(u);
  const power = order * log;
  if (power <= 40) return Math.log(Math.expm1(power) - order * u);
  const subtracted = t > 30 ? Math.log(order) + log : Math.log1p(order * u);
  return power + Math.log1p(-Math.exp(subtracted - power));
}

/**
 * The Rényi divergence of order α between the outcomes of one step on data sets that differ in one example.
 * @param q the probability with which a step takes an example, from 0 to 1
 * @param sigma the noise's standard deviation over the largest norm of an example's share, above 0
 * @param order α, above 1
 */
export function sampledGaussianDivergence(q: number, sigma: number, order: number): number {
  if (q === 0) return 0;
  const variance = sigma * sigma;
  if (q === 1) return order / (2 * variance);
  const step = Math.min(sigma / 4, (2 * Math.PI * Math.PI * variance) / kDigits);
  // The integrand lies around 0 and around α, with tails of normal densities.
  const tail = sigma * Math.sqrt(2 * (kDigits + 10));
  const first = Math.floor(-tail / step);
  const last = Math.ceil((order + tail) / step);
  const logs = new Float64Array(last - first + 1);
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logs.length; i++) {
    const z = (first + i) * step;
    const log = logExcess((2 * z - 1) / (2 * variance), q, order) - (z * z) / (2 * variance);
    logs[i] = log;
    if (log > largest) largest = log;
  }
  if (largest === Number.NEGATIVE_INFINITY) return 0;
  let sum = 0;
  for (const log of logs) sum += Math.exp(log - largest);
  const excess = largest + Math.log((sum * step) / (sigma * Math.sqrt(2 * Math.PI)));
  // log(1 + e^excess)
  const moment = excess > 0 ? excess + Math.log1p(Math.exp(-excess)) : Math.log1p(Math.exp(excess));
  return moment / (order - 1);
}
