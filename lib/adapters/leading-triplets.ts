import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';

/** Directions beyond those asked for, which make the last ones converge. */
const OVERSAMPLING = 8;
const ITERATIONS = 12;

/** Rows [p, n] made orthonormal in place, twice, so that nothing is left of cancellation. */
function orthonormalise(rows: Float64Array, p: number, n: number): void {
  for (let i = 0; i < p; i++) {
    const row = rows.subarray(i * n, (i + 1) * n);
    for (let pass = 0; pass < 2; pass++) {
      for (let j = 0; j < i; j++) {
        const other = rows.subarray(j * n, (j + 1) * n);
        let dot = 0;
        for (let k = 0; k < n; k++) dot += (row[k] as number) * (other[k] as number);
        for (let k = 0; k < n; k++) row[k] = (row[k] as number) - dot * (other[k] as number);
      }
    }
    let norm = 0;
    for (const value of row) norm += value * value;
    // A direction that the others hold already has nothing left.
    const scale = norm > 1e-30 ? 1 / Math.sqrt(norm) : 0;
    for (let k = 0; k < n; k++) row[k] = (row[k] as number) * scale;
  }
}

/** Eigenvectors of a symmetric matrix [p, p] as rows, largest eigenvalue first; by Jacobi's rotations. */
function eigenvectors(symmetric: Float64Array, p: number): Float64Array {
  const a = Float64Array.from(symmetric);
  const v = new Float64Array(p * p);
  for (let i = 0; i < p; i++) v[i * p + i] = 1;
  const at = (m: Float64Array, i: number, j: number): number => m[i * p + j] as number;
  for (let sweep = 0; sweep < 30; sweep++) {
    for (let i = 0; i < p; i++) {
      for (let j = i + 1; j < p; j++) {
        const off = at(a, i, j);
        if (Math.abs(off) <= 1e-15 * Math.sqrt(Math.abs(at(a, i, i) * at(a, j, j)))) continue;
        const tau = (at(a, j, j) - at(a, i, i)) / (2 * off);
        const t = (tau < 0 ? -1 : 1) / (Math.abs(tau) + Math.sqrt(1 + tau * tau));
        const c = 1 / Math.sqrt(1 + t * t);
        const s = t * c;
        for (let k = 0; k < p; k++) {
          const [x, y] = [at(a, k, i), at(a, k, j)];
          a[k * p + i] = c * x - s * y;
          a[k * p + j] = s * x + c * y;
        }
        for (let k = 0; k < p; k++) {
          const [x, y] = [at(a, i, k), at(a, j, k)];
          a[i * p + k] = c * x - s * y;
          a[j * p + k] = s * x + c * y;
          const [z, u] = [at(v, i, k), at(v, j, k)];
          v[i * p + k] = c * z - s * u;
          v[j * p + k] = s * z + c * u;
        }
      }
    }
  }
  const order = Array.from({ length: p }, (_, i) => i).sort((i, j) => at(a, j, j) - at(a, i, i));
  const sorted = new Float64Array(p * p);
  order.forEach((from, to) => {
    sorted.set(v.subarray(from * p, (from + 1) * p), to * p);
  });
  return sorted;
}

/** The first `count` rows of `left · right`, left [p, p], right [p, n]. */
function firstRows(
  left: Float64Array,
  right: Float64Array,
  count: number,
  p: number,
): Float64Array {
  const n = right.length / p;
  const out = new Float64Array(count * n);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < p; j++) {
      const factor = left[i * p + j] as number;
      for (let k = 0; k < n; k++) {
        out[i * n + k] = (out[i * n + k] as number) + factor * (right[j * n + k] as number);
      }
    }
  }
  return out;
}

/**
 * The r leading singular triplets of a base weight [N, K], by subspace iteration: products with w on
 * its device, the rest on the host in double. For starting an adapter, not for its steps.
 * @param seed of the first directions
 * @returns Vᵀ [r, K] and (U·S)ᵀ [r, N]
 */
export function leadingTriplets(
  w: BaseWeight,
  r: number,
  seed: number,
): { right: Float64Array; scaledLeft: Float64Array } {
  const [N = 0, K = 0] = w.shape;
  const p = Math.min(r + OVERSAMPLING, N, K);
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
    const gram = new Float64Array(p * p);
    for (let i = 0; i < p; i++) {
      for (let j = 0; j < p; j++) {
        let dot = 0;
        for (let k = 0; k < N; k++) {
          dot += (left[i * N + k] as number) * (left[j * N + k] as number);
        }
        gram[i * p + j] = dot;
      }
    }
    const turn = eigenvectors(gram, p);
    return { right: firstRows(turn, right, r, p), scaledLeft: firstRows(turn, left, r, p) };
  });
}
