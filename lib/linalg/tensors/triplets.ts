import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { denseRows } from '../../ops/dense-rows.js';
import { matmul, matmulInputGrad } from '../../ops/matmul.js';
import { choleskyRows, solveLower } from '../cholesky.js';
import { orthonormalise, rowDots, transposed } from '../rows.js';
import { symmetricEigen } from '../symmetric-eigen.js';
import { thinQr } from '../thin-qr.js';

/** Directions beyond the requested ones, which make the last ones converge. */
const OVERSAMPLING = 8;
/** Passes over the weight and its transpose. */
export const ITERATIONS = 12;

/** A number of directions that counts as few whatever the weight's size. */
const FEW = 48;
/** Above this fraction of the smaller side, it is faster to compute all triplets at once. */
const SHARE = 1 / 4;

/** Vᵀ [r, K], orthonormal, and (U·S)ᵀ [r, N], row by row. */
export interface Triplets {
  right: Float64Array;
  scaledLeft: Float64Array;
}

/** Triplets from `first` on, in descending order, and `count` of them. */
interface Range {
  readonly first: number;
  readonly count: number;
}

/** The rows of w in float64, turned so that they are along its longer side. */
function wideRows(w: BaseWeight) {
  const [N = 0, K = 0] = w.shape;
  const rows = scope(() => Float64Array.from(denseRows(w, 0, N).readSync()));
  const isWide = N < K;
  const [small, large] = isWide ? [N, K] : [K, N];
  return { isWide, small, large, rows: isWide ? rows : transposed(rows, N, K) };
}

/**
 * From the eigenvectors of the product of w with itself over its longer side, on the host in float64: w is f32, so squaring
 * loses less than its last place. Vectors of the longer side whose values are nearly zero are made orthonormal to the others.
 */
export function allTriplets(w: BaseWeight, { first, count }: Range): Triplets {
  const { isWide, small, large, rows } = wideRows(w);
  const { vectors } = symmetricEigen(rowDots(rows, small, rows, small, large), small);
  const own = vectors.slice(first * small, (first + count) * small);
  return otherSide(own, count, rows, isWide, small, large);
}

/** Completes orthonormal vectors of the shorter side, in descending order of their values. */
function otherSide(
  own: Float64Array,
  r: number,
  rows: Float64Array,
  isWide: boolean,
  small: number,
  large: number,
): Triplets {
  const scaled = rowDots(own, r, transposed(rows, small, large), large, small);
  if (!isWide) return { right: own, scaledLeft: scaled };
  let exact = r;
  let largest = 0;
  for (let i = 0; i < r; i++) {
    const row = scaled.subarray(i * large, (i + 1) * large);
    const value = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0));
    largest = Math.max(largest, value);
    if (value <= 1e-4 * largest) exact = Math.min(exact, i);
    for (let k = 0; k < large; k++) row[k] = (row[k] as number) / (value || 1);
    for (let n = 0; n < small; n++) own[i * small + n] = (own[i * small + n] as number) * value;
  }
  orthonormalise(scaled, r, large, exact);
  return { right: scaled, scaledLeft: own };
}

/** What rounding in f32 may take from a product of unit rows with themselves, and more. */
const SHIFT = 1e-6;
/** A pass makes a basis orthonormal to about SHIFT if no pivot is below this. */
const GOOD_PIVOT = 1e-2;
const MOST_PASSES = 3;

/**
 * Rows [p, n] as a nearly orthonormal basis of the same space, on their device. A pass divides by the Cholesky factor of the
 * product of the rows with themselves. Where that is nearly singular in f32, its diagonal is raised and the pass repeats
 * (Fukaya et al., Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices, 2020).
 */
function basisOf(rows: Tensor): Tensor {
  let basis = rows;
  for (let pass = 0; pass < MOST_PASSES; pass++) {
    const { inverse, least } = inverseFactor(basis);
    const { device, shape } = rows;
    const [p = 0] = shape;
    const factor = Tensor.from(inverse, [p, p], { device });
    basis = matmulInputGrad(factor, basis);
    if (least >= GOOD_PIVOT) break;
  }
  return basis;
}

/** The inverse of the Cholesky factor of the product of rows with themselves, and its least pivot for rows of length 1. */
function inverseFactor(rows: Tensor): { inverse: Float32Array; least: number } {
  const [p = 0] = rows.shape;
  const gram = Float64Array.from(matmul(rows, rows).readSync());
  const scales = Float64Array.from({ length: p }, (_, i) => {
    const square = gram[i * p + i] as number;
    return square > 0 ? 1 / Math.sqrt(square) : 0;
  });
  for (let i = 0; i < p; i++) {
    for (let j = 0; j < p; j++) {
      const at = i * p + j;
      gram[at] = (gram[at] as number) * (scales[i] as number) * (scales[j] as number);
    }
    gram[i * p + i] = 1 + SHIFT;
  }
  const { l, failed } = choleskyRows(gram, p);
  const inverse = new Float64Array(p * p);
  let least = failed === undefined ? 1 : 0;
  for (let i = 0; i < p; i++) {
    inverse[i * p + i] = scales[i] as number;
    if (failed === undefined) least = Math.min(least, (l[i * p + i] as number) ** 2);
  }
  // Without a factor, rows of length 1: the next pass has a better product.
  if (failed === undefined) solveLower(l, p, inverse, p);
  return { inverse: Float32Array.from(inverse), least };
}

/**
 * The r leading singular triplets of a base weight [N, K]. A few are computed by subspace iteration, with the products on the
 * weight's device and problems of r rows on the host in float64; many (above a quarter of the smaller side) by
 * {@link symmetricEigen}. For initialising an adapter, not for its steps.
 * @param seed of the initial directions
 * @returns Vᵀ [r, K] and (U·S)ᵀ [r, N]
 */
export function leadingTriplets(
  w: BaseWeight,
  r: number,
  seed: number,
  iterations = ITERATIONS,
): Triplets {
  const [N = 0, K = 0] = w.shape;
  const p = Math.min(r + OVERSAMPLING, N, K);
  if (p > FEW && p > SHARE * Math.min(N, K)) {
    return scope(() => allTriplets(w, { first: 0, count: r }));
  }
  const { device } = w;
  return scope(() => {
    let start = basisOf(Tensor.randn([p, K], { seed, device }));
    for (let i = 0; i < iterations; i++) {
      start = scope(() => basisOf(matmulInputGrad(basisOf(matmul(start, w)), w)));
    }
    const { q: rows } = thinQr(Float64Array.from(start.readSync()), p, K);
    const right = Tensor.from(Float32Array.from(rows), [p, K], { device });
    const left = Float64Array.from(matmul(right, w).readSync());
    const { vectors } = symmetricEigen(rowDots(left, p, left, p, N), p);
    const turn = vectors.subarray(0, r * p);
    return {
      right: rowDots(turn, r, transposed(rows, p, K), K, p),
      scaledLeft: rowDots(turn, r, transposed(left, p, N), N, p),
    };
  });
}

/** Up to this size all triplets are computed where the last ones are wanted. */
const MOST_AT_ONCE = 1024;

/**
 * The r trailing singular triplets, in descending order. Up to 1,024 vectors of the shorter side they are those of
 * {@link symmetricEigen}; above that of inverse iteration with the Cholesky factor of the product of w with itself, in float64.
 */
export function trailingTriplets(
  w: BaseWeight,
  r: number,
  seed: number,
  mostAtOnce = MOST_AT_ONCE,
): Triplets {
  const small = Math.min(...w.shape);
  const first = small - r;
  if (small <= mostAtOnce) return scope(() => allTriplets(w, { first, count: r }));
  const { isWide, large, rows } = wideRows(w);
  const gram = rowDots(rows, small, rows, small, large);
  const trace = gram.reduce((sum, v, at) => (at % (small + 1) === 0 ? sum + v : sum), 0);
  // A singular product has no factor; this is below what f32 entries of w are good for.
  for (let i = 0; i < small; i++) {
    gram[i * small + i] = (gram[i * small + i] as number) + (trace / small) * 1e-12;
  }
  const { l } = choleskyRows(gram, small);
  const p = Math.min(r + OVERSAMPLING, small);
  const start = scope(() => Tensor.randn([p, small], { seed, device: 'cpu' }).readSync());
  let basis = Float64Array.from(start);
  for (let i = 0; i < ITERATIONS; i++) {
    orthonormalise(basis, p, small);
    const columns = transposed(basis, p, small);
    solveLower(l, small, columns, p);
    solveLower(l, small, columns, p, true);
    basis = transposed(columns, small, p) as Float64Array<ArrayBuffer>;
  }
  orthonormalise(basis, p, small);
  const images = rowDots(basis, p, transposed(rows, small, large), large, small);
  const { vectors } = symmetricEigen(rowDots(images, p, images, p, large), p);
  const turn = vectors.subarray((p - r) * p, p * p);
  const own = rowDots(turn, r, transposed(basis, p, small), small, p);
  return otherSide(own, r, rows, isWide, small, large);
}

/**
 * The r leading singular triplets of a base weight as separate factors: columns `u` [N, r] of length 1 (zeros if the value
 * is 0), values `s` [r] in descending order, rows `v` [r, K].
 * @param seed for {@link leadingTriplets}, whose triplets are accurate enough to start from. Without a seed they are exact
 * to f32, as they must be to match those of a peer; the time then grows with the cube of the smaller side
 */
export function singularFactors(
  w: BaseWeight,
  r: number,
  seed?: number,
): { u: Float32Array; s: Float32Array; v: Float32Array } {
  const [N = 0] = w.shape;
  const triplets =
    seed === undefined
      ? scope(() => allTriplets(w, { first: 0, count: r }))
      : leadingTriplets(w, r, seed);
  const { u, s } = apart(triplets.scaledLeft, r, N);
  return { u, s: Float32Array.from(s), v: Float32Array.from(triplets.right) };
}

/** Left vectors as columns of length 1 [N, r], and values, of (U·S)ᵀ [r, N]. A vector whose value is 0 is zero. */
export function apart(scaledLeft: Float64Array, r: number, N: number) {
  const u = new Float32Array(N * r);
  const s = new Float64Array(r);
  for (let i = 0; i < r; i++) {
    const left = scaledLeft.subarray(i * N, (i + 1) * N);
    const norm = Math.sqrt(left.reduce((sum, v) => sum + v * v, 0));
    s[i] = norm;
    for (let n = 0; n < N; n++) u[n * r + i] = norm === 0 ? 0 : (left[n] as number) / norm;
  }
  return { u, s };
}
