import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { choleskyRows, solveLower } from '../../linalg/cholesky.js';
import { transposed } from '../../linalg/rows.js';
import { type Svd, svd } from '../../linalg/tensors/svd.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { matmul } from '../../ops/matmul.js';
import type { StartLayer } from '../definition/definition.js';
import { decoded } from './decoded.js';
import { damped } from './inputs.js';

/** Least damping of a matrix that has no factor: below what f32 inputs are good for. */
const kLeast = 1e-10;
const MOST_TRIES = 12;

function factorOf(start: string, second: Float64Array, K: number): Float64Array {
  const plain = choleskyRows(second, K);
  if (plain.failed === undefined) return plain.l;
  for (let i = 0; i < MOST_TRIES; i++) {
    const { l, failed } = choleskyRows(damped(second, K, kLeast * 10 ** i), K);
    if (failed === undefined) return l;
  }
  return fail('ERR_VALUE', `start ${start}`, 'the inputs', 'not all zero', 'sums of 0');
}

/**
 * The repair of rank r of a quantised weight whose error in the layer's output is least: with R = L · Lᵀ the second moments of the
 * inputs and Δ = w − quantise(w), the triplets of (Δ · L)ᵣ, with v turned back by L⁻¹. Any root of R gives the same update.
 * @param second [K, K] R, row by row
 * @returns Δ ≈ u · diag(s) · v; rows of v are not orthonormal
 */
export function weightedRepair(
  start: string,
  { w, K, device, quantise }: StartLayer,
  second: Float64Array,
  { r, seed, iterations }: { r: number; seed: number; iterations: number | 'exact' },
): Svd {
  const l = factorOf(start, second, K);
  const error = multiplyAdd({ a: w, c: decoded(quantise(w)), beta: -1 });
  const turned = Tensor.from(Float32Array.from(transposed(l, K, K)), [K, K], { device });
  const { u, s, v } = svd(matmul(error, turned), { r, seed, iterations });
  const columns = transposed(Float64Array.from(v.readSync()), r, K);
  solveLower(l, K, columns, r, true);
  const rows = Float32Array.from(transposed(columns, K, r));
  return { u, s, v: Tensor.from(rows, [r, K], { device }) };
}
