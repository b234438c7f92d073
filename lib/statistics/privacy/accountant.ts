/** How private a run of the Poisson-subsampled Gaussian mechanism is, and how much noise a bound needs. */

import { fail, shown, wrongType } from '../../core/errors.js';
import { checkFinite, checkInteger, readNumbers, readOptions } from '../../core/validate.js';
import { sampledGaussianDivergence } from './renyi.js';
import { seriesDivergence } from './series.js';

/**
 * How divergences of fractional orders are computed: `exact`, or with the errors of a peer's series, for its numbers. `opacus`
 * cuts the series off, `dp-accounting` also adds the magnitudes of its terms, which is an upper bound.
 */
export type PrivacySums = 'exact' | 'opacus' | 'dp-accounting';

/** A run of private steps. */
export interface PrivateRun {
  /** The probability with which a step takes an example, above 0, up to 1. */
  readonly sampleRate: number;
  /** The noise's standard deviation over the bound of an example's gradient norm; at least 0.05. */
  readonly noise: number;
  readonly steps: number;
  /** Above 0 and below 1: smaller than one over the number of examples, to mean something. */
  readonly delta: number;
  /** Orders of the Rényi divergence, each above 1; default 1.1 to 1,024. */
  readonly orders?: readonly number[];
  /** Default `exact`. */
  readonly sums?: PrivacySums;
}

/** What {@link privacyAccountant} finds. */
export interface PrivacyGuarantee {
  /** The run is (epsilon, delta)-differentially private. */
  readonly epsilon: number;
  /** The order that gives it. */
  readonly order: number;
}

const kOrders: readonly number[] = [
  ...Array.from({ length: 99 }, (_, i) => 1 + (i + 1) / 10),
  ...Array.from({ length: 52 }, (_, i) => 12 + i),
  ...[64, 80, 96, 128, 192, 256, 384, 512, 768, 1024],
];

/** The smallest noise that the accountant takes. Less of it protects nobody. */
const kLeastNoise = 0.05;
const kMostNoise = 2 ** 20;
const kMostSteps = 1e12;

type Known = Required<Omit<PrivateRun, 'noise'>>;
const kRunOptions = {
  sampleRate: true,
  steps: true,
  delta: true,
  orders: true,
  sums: true,
} as const;

const kSums: readonly PrivacySums[] = ['exact', 'opacus', 'dp-accounting'];

function checkRun(op: string, given: Partial<PrivateRun>): Known {
  const { sampleRate, steps, delta, orders, sums = 'exact' } = given;
  const rate = checkFinite(op, 'sampleRate', sampleRate);
  if (!(rate > 0 && rate <= 1)) {
    fail('ERR_VALUE', op, 'sampleRate', 'above 0 and at most 1', String(rate));
  }
  checkInteger(op, 'steps', steps, 0, kMostSteps);
  const share = checkFinite(op, 'delta', delta);
  if (!(share > 0 && share < 1)) {
    fail('ERR_VALUE', op, 'delta', 'above 0 and below 1', String(share));
  }
  const all =
    orders === undefined
      ? kOrders
      : readNumbers(op, 'orders', orders, (name, value) => {
          const order = checkFinite(op, name, value);
          if (order <= 1 || order > 1e5) {
            fail('ERR_VALUE', op, name, 'above 1 and at most 100000', String(order));
          }
          return order;
        });
  if (all.length === 0) fail('ERR_VALUE', op, 'orders', 'at least one', 'none');
  if (typeof sums !== 'string') throw wrongType(op, 'sums', 'a string', sums);
  if (!kSums.includes(sums)) {
    fail('ERR_VALUE', op, 'sums', `one of ${kSums.join(', ')}`, shown(sums));
  }
  return { sampleRate: rate, steps: steps as number, delta: share, orders: all, sums };
}

/**
 * From Rényi divergences to (ε, δ) (Balle and others, Hypothesis Testing Interpretations and Rényi Differential Privacy, 2020,
 * arXiv:1905.09982): ε = steps · D_α + log((α − 1) / α) − (log δ + log α) / (α − 1), the smallest over the orders.
 */
function guarantee({ sampleRate, steps, delta, orders, sums }: Known, noise: number) {
  let best: PrivacyGuarantee = { epsilon: Number.POSITIVE_INFINITY, order: orders[0] as number };
  for (const order of orders) {
    const exact = sums === 'exact' || sampleRate === 1 || Number.isInteger(order);
    const divergence = exact
      ? sampledGaussianDivergence(sampleRate, noise, order)
      : seriesDivergence(sampleRate, noise, order, sums === 'dp-accounting');
    const shift = Math.log1p(-1 / order) - (Math.log(delta) + Math.log(order)) / (order - 1);
    const epsilon = Math.max(0, steps * divergence + shift);
    if (epsilon < best.epsilon) best = { epsilon, order };
  }
  return best;
}

/**
 * The (ε, δ) of a run whose steps take each example with a probability, clip its gradient to a norm, and add normal
 * noise to the sum. Neighbouring data sets differ in one example more or less. The accountant composes Rényi divergences
 * ({@link PrivateRun.orders}), each exact up to rounding.
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const { epsilon } = privacyAccountant({ sampleRate: 0.01, noise: 1.1, steps: 1000, delta: 1e-5 });
 */
export function privacyAccountant(run: PrivateRun): PrivacyGuarantee {
  const op = 'privacyAccountant';
  const given = readOptions(op, run, { ...kRunOptions, noise: true });
  const known = checkRun(op, given);
  const noise = checkFinite(op, 'noise', given.noise);
  if (!(noise >= kLeastNoise && noise <= kMostNoise)) {
    fail('ERR_VALUE', op, 'noise', `from ${kLeastNoise} to ${kMostNoise}`, String(noise));
  }
  if (known.steps === 0) return { epsilon: 0, order: known.orders[0] as number };
  return guarantee(known, noise);
}

/** What {@link noiseForPrivacy} wants. */
export interface PrivacyTarget extends Omit<PrivateRun, 'noise'> {
  /** The largest epsilon that is accepted, above 0. */
  readonly epsilon: number;
}

/**
 * The smallest noise with which {@link privacyAccountant} finds at most this epsilon, to nine digits: found by bisection, and
 * never too small.
 * @throws ERR_TYPE · ERR_VALUE, also for an epsilon that no noise reaches with these orders
 * @example
 * const noise = noiseForPrivacy({ sampleRate: 0.01, steps: 1000, epsilon: 8, delta: 1e-5 });
 */
export function noiseForPrivacy(target: PrivacyTarget): number {
  const op = 'noiseForPrivacy';
  const given = readOptions(op, target, { ...kRunOptions, epsilon: true });
  const known = checkRun(op, given);
  const epsilon = checkFinite(op, 'epsilon', given.epsilon);
  if (epsilon <= 0) fail('ERR_VALUE', op, 'epsilon', 'above 0', String(epsilon));
  if (known.steps === 0) return kLeastNoise;
  const enough = (noise: number) => guarantee(known, noise).epsilon <= epsilon;
  let high = 1;
  while (!enough(high)) {
    high *= 2;
    if (high > kMostNoise) {
      const least = guarantee(known, kMostNoise).epsilon;
      fail('ERR_VALUE', op, 'epsilon', `at least ${least.toPrecision(3)} here`, String(epsilon));
    }
  }
  let low = high / 2;
  while (low >= kLeastNoise && enough(low)) [low, high] = [low / 2, low];
  low = Math.max(low, kLeastNoise);
  if (enough(low)) return low;
  while (high - low > 1e-9 * high) {
    const middle = (low + high) / 2;
    if (enough(middle)) high = middle;
    else low = middle;
  }
  return high;
}
