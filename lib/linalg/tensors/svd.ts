import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkInteger, readOptions } from '../../core/validate.js';
import { type BaseWeight, checkWeight } from '../../ops/base-weight.js';
import { tensorLike } from './matrix.js';
import { allTriplets, apart, ITERATIONS, leadingTriplets, trailingTriplets } from './triplets.js';

/** Options of {@link svd}. */
export interface SvdOptions {
  /** Number of triplets; default all, min(N, K). */
  r?: number;
  /** Which of them; default `largest`. */
  which?: 'largest' | 'smallest';
  /** Of the random directions that the iteration begins with; default 0. */
  seed?: number;
  /** Passes over w and its transpose, from 1 on; default 12. `exact` decomposes the whole matrix. */
  iterations?: number | 'exact';
}

/** Result of {@link svd}: `w ≈ u · diag(s) · v`. */
export interface Svd {
  /** [N, r] f32 columns of length 1; a column whose value is 0 is zero. */
  readonly u: Tensor;
  /** [r] descending. */
  readonly s: Float64Array;
  /** [r, K] f32 orthonormal rows. The entry of largest magnitude of each is positive. */
  readonly v: Tensor;
}

/**
 * Singular triplets of a matrix or a base weight. A few leading ones come from subspace iteration: products with w run natively on
 * its device (a quantised weight stays quantised), and problems of r rows run on the host in float64. Their error falls by
 * (σ of the ninth omitted triplet / σᵣ)² with each pass. More than a quarter of them, or `exact`, come from the eigenvectors of
 * w·wᵀ or wᵀ·w in float64, which costs the cube of the smaller side: some seconds for 1,024. The smallest ones of larger matrices
 * come from inverse iteration with a Cholesky factor.
 *
 * Each triplet has a sign that a decomposition does not determine. Here the entry of largest magnitude of each row of v is
 * positive, the first of several; results do not depend on the seed, the device or the number of threads in their sign.
 * @param w [N, K] dense of any dtype, or quantised
 * @returns on the device of w
 * @throws ERR_TYPE · ERR_SHAPE · ERR_VALUE if r is not from 1 to min(N, K) · ERR_NON_FINITE · ERR_DISPOSED · ERR_OOM
 * @example
 * const { u, s, v } = svd(w, { r: 16, seed: 1 });
 */
export function svd(w: BaseWeight, options?: SvdOptions): Svd {
  const op = 'svd';
  const { N, K } = checkWeight(op, w);
  const given = readOptions(op, options, { r: true, which: true, seed: true, iterations: true });
  const small = Math.min(N, K);
  if (small === 0) fail('ERR_SHAPE', op, 'w', 'of at least one row and column', `[${N}, ${K}]`);
  const r = checkInteger(op, 'r', given.r ?? small, 1, small);
  const seed = checkInteger(op, 'seed', given.seed ?? 0, 0, Number.MAX_SAFE_INTEGER);
  const { which = 'largest', iterations = ITERATIONS } = given;
  if (which !== 'largest' && which !== 'smallest') {
    fail('ERR_VALUE', op, 'which', 'largest or smallest', JSON.stringify(which));
  }
  const passes =
    iterations === 'exact' ? undefined : checkInteger(op, 'iterations', iterations, 1, 10_000);
  const { right, scaledLeft } = scope(() => {
    if (which === 'smallest') return trailingTriplets(w, r, seed);
    if (passes === undefined || r === small) return allTriplets(w, { first: 0, count: r });
    return leadingTriplets(w, r, seed, passes);
  });
  const bad = scaledLeft.find((value) => !Number.isFinite(value));
  if (bad !== undefined) fail('ERR_NON_FINITE', op, 'w', 'finite', 'NaN or infinity');
  turnPositive(right, scaledLeft, r, K, N);
  const { u, s } = apart(scaledLeft, r, N);
  return { u: tensorLike(u, [N, r], w), s, v: tensorLike(right, [r, K], w) };
}

/** Negates both vectors where the largest entry of the right one is negative. */
function turnPositive(
  right: Float64Array,
  left: Float64Array,
  r: number,
  K: number,
  N: number,
): void {
  for (let i = 0; i < r; i++) {
    let largest = 0;
    for (let k = i * K; k < (i + 1) * K; k++) {
      const value = right[k] as number;
      // Entries that are equal to f32 count as equal, so that rounding does not choose the sign.
      if (Math.abs(value) > Math.abs(largest) * (1 + 1e-6)) largest = value;
    }
    if (largest >= 0) continue;
    for (let k = i * K; k < (i + 1) * K; k++) right[k] = -(right[k] as number);
    for (let n = i * N; n < (i + 1) * N; n++) left[n] = -(left[n] as number);
  }
}
