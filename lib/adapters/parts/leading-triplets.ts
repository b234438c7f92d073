import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { orthonormalise, rowDots, transposed } from '../../linalg/rows.js';
import { symmetricEigen } from '../../linalg/symmetric-eigen.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { denseRows } from '../../ops/dense-rows.js';
import { matmul, matmulInputGrad } from '../../ops/matmul.js';

/** Directions beyond the requested ones, which make the last ones converge. */
const OVERSAMPLING = 8;
const ITERATIONS = 12;

/** A number of directions that counts as few whatever the weight's size. */
const FEW = 48;
/** Above this fraction of the smaller side, it is faster to compute all triplets at once. */
const SHARE = 1 / 8;

/** Vᵀ [r, K], orthonormal, and (U·S)ᵀ [r, N], row by row. */
interface Triplets {
  right: Float64Array;
  scaledLeft: Float64Array;
}

/**
 * From the eigenvectors of the product of w with itself over its longer side, on the host in float64: w is f32, so squaring
 * loses less than its last place. Right vectors whose values are nearly zero are made orthonormal to the others.
 */
function allTriplets(w: BaseWeight, r: number): Triplets {
  const [N = 0, K = 0] = w.shape;
  const rows = Float64Array.from(denseRows(w, 0, N).readSync());
  const columns = transposed(rows, N, K);
  const isWide = N < K;
  const [wide, tall] = isWide ? [rows, columns] : [columns, rows];
  const [small, large] = isWide ? [N, K] : [K, N];
  const { vectors } = symmetricEigen(rowDots(wide, small, wide, small, large), small);
  const own = vectors.slice(0, r * small);
  const scaled = rowDots(own, r, tall, large, small);
  if (!isWide) return { right: own, scaledLeft: scaled };
  let exact = r;
  let largest = 0;
  for (let i = 0; i < r; i++) {
    const row = scaled.subarray(i * K, (i + 1) * K);
    const value = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0));
    largest = Math.max(largest, value);
    if (value <= 1e-4 * largest) exact = Math.min(exact, i);
    for (let k = 0; k < K; k++) row[k] = (row[k] as number) / (value || 1);
    for (let n = 0; n < N; n++) own[i * N + n] = (own[i * N + n] as number) * value;
  }
  orthonormalise(scaled, r, K, exact);
  return { right: scaled, scaledLeft: own };
}

/**
 * The r leading singular triplets of a base weight [N, K]. A few are computed by subspace iteration, with the products with w on
 * its device and the rest on the host in double; many (above an eighth of the smaller side) by {@link symmetricEigen}. For
 * initialising an adapter, not for its steps.
 * @param seed of the initial directions
 * @returns Vᵀ [r, K] and (U·S)ᵀ [r, N]
 */
export function leadingTriplets(w: BaseWeight, r: number, seed: number): Triplets {
  const [N = 0, K = 0] = w.shape;
  const p = Math.min(r + OVERSAMPLING, N, K);
  if (p > FEW && p > SHARE * Math.min(N, K)) return scope(() => allTriplets(w, r));
  const { device } = w;
  const upload = (rows: Float64Array, n: number): Tensor =>
    Tensor.from(Float32Array.from(rows), [p, n], { device });
  const read = (tensor: Tensor): Float64Array => Float64Array.from(tensor.readSync());
  return scope(() => {
    let right = read(Tensor.randn([p, K], { seed, device }));
    orthonormalise(right, p, K);
    for (let i = 0; i < ITERATIONS; i++) {
      scope(() => {
        const left = read(matmul(upload(right, K), w));
        orthonormalise(left, p, N);
        right = read(matmulInputGrad(upload(left, N), w));
        orthonormalise(right, p, K);
      });
    }
    const left = read(matmul(upload(right, K), w));
    const { vectors } = symmetricEigen(rowDots(left, p, left, p, N), p);
    const turn = vectors.subarray(0, r * p);
    return {
      right: rowDots(turn, r, transposed(right, p, K), K, p),
      scaledLeft: rowDots(turn, r, transposed(left, p, N), N, p),
    };
  });
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
  const { right, scaledLeft } =
    seed === undefined ? scope(() => allTriplets(w, r)) : leadingTriplets(w, r, seed);
  const u = new Float32Array(N * r);
  const s = new Float32Array(r);
  for (let i = 0; i < r; i++) {
    const left = scaledLeft.subarray(i * N, (i + 1) * N);
    const norm = Math.sqrt(left.reduce((sum, v) => sum + v * v, 0));
    s[i] = norm;
    for (let n = 0; n < N; n++) u[n * r + i] = norm === 0 ? 0 : (left[n] as number) / norm;
  }
  return { u, s, v: Float32Array.from(right) };
}
