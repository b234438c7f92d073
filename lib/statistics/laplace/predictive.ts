import { fail } from '../../core/errors.js';
import { uniform } from '../../core/random.js';
import { checkInteger, readOptions } from '../../core/validate.js';
import { choleskyRows } from '../../linalg/cholesky.js';
import { softmax } from './laplace.js';
import type { LaplacePrediction } from './posterior.js';

/** How {@link predictiveProbabilities} works. */
export interface PredictiveOptions {
  /** Draws of each example's logits; default 1,000. */
  readonly samples?: number;
  /** Default 1. */
  readonly seed?: number;
}

/**
 * Probabilities of classes under a prediction: the mean of the softmax over draws from the normal distribution of each
 * example's logits. They are nearer to each other than those of the trained values where the posterior is unsure.
 * @returns [examples, classes]
 * @throws ERR_TYPE · ERR_VALUE · ERR_NON_FINITE
 * @example
 * const probabilities = predictiveProbabilities(posterior.predict(pass), { samples: 10_000 });
 */
export function predictiveProbabilities(
  prediction: LaplacePrediction,
  options?: PredictiveOptions,
): Float64Array {
  const op = 'predictiveProbabilities';
  const given = readOptions(op, options, { samples: true, seed: true });
  const samples = checkInteger(op, 'samples', given.samples ?? 1000, 1, 1e9);
  const seed = checkInteger(op, 'seed', given.seed ?? 1, 0, Number.MAX_SAFE_INTEGER);
  const { examples, classes, logits, covariance } = prediction;
  const result = new Float64Array(examples * classes);
  for (let n = 0; n < examples; n++) {
    const at = n * classes;
    const root = rootOf(op, covariance.slice(at * classes, (at + classes) * classes), classes);
    const next = normals(seed, n);
    const sum = result.subarray(at, at + classes);
    for (let i = 0; i < samples; i++) {
      const z = Float64Array.from({ length: classes }, next);
      const drawn = Float64Array.from({ length: classes }, (_, c) => {
        let value = logits[at + c] as number;
        for (let d = 0; d <= c; d++) value += (root[c * classes + d] as number) * (z[d] as number);
        return value;
      });
      softmax(drawn).forEach((p, c) => {
        sum[c] = (sum[c] as number) + p / samples;
      });
    }
  }
  return result;
}

/** A lower-triangular root of a covariance; a jitter makes up for what rounding takes from a singular one. */
function rootOf(op: string, covariance: Float64Array, n: number): Float64Array {
  if (!covariance.every(Number.isFinite)) {
    fail('ERR_NON_FINITE', op, 'the covariance', 'finite', 'NaN or infinity');
  }
  let largest = 0;
  for (let i = 0; i < n; i++) largest = Math.max(largest, covariance[i * n + i] as number);
  if (largest === 0) return new Float64Array(n * n);
  for (let jitter = 0; ; jitter = jitter === 0 ? 1e-9 : 10 * jitter) {
    const shifted = covariance.slice();
    for (let i = 0; i < n; i++) {
      shifted[i * n + i] = (shifted[i * n + i] as number) + jitter * largest;
    }
    const { l, failed } = choleskyRows(shifted, n);
    if (failed === undefined) return l;
  }
}

/** Normal numbers of an example, by Box and Muller. */
function normals(seed: number, example: number): () => number {
  const next = uniform(seed, 'laplace', example);
  let spare: number | undefined;
  return () => {
    if (spare !== undefined) {
      const value = spare;
      spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - next()));
    const angle = 2 * Math.PI * next();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}
