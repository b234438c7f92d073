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

/** How triplets are found. */
export interface TripletOptions {
  readonly r: number;
  readonly seed: number;
  readonly iterations: number | 'exact';
}

/** A matrix [N, K] seen through the inputs of its layer, whose second moments are R = L · Lᵀ. Any root of R does the same. */
export class SeenMatrix {
  readonly #l: Float64Array;
  readonly #turned: Tensor;

  /**
   * @param second [K, K] R, row by row
   * @throws ERR_VALUE for second moments of 0
   */
  constructor(start: string, second: Float64Array, { K, device }: StartLayer) {
    this.#l = factorOf(start, second, K);
    this.#turned = Tensor.from(Float32Array.from(transposed(this.#l, K, K)), [K, K], { device });
  }

  /** m · L, [N, K]. */
  seen(m: Tensor): Tensor {
    return matmul(m, this.#turned);
  }

  /** The triplets of (m · L)ᵣ with v turned back by L⁻¹: m ≈ u · diag(s) · v. Rows of v are not orthonormal. */
  triplets(m: Tensor, { r, seed, iterations }: TripletOptions): Svd {
    const { device } = m;
    const [, K = 0] = m.shape;
    const { u, s, v } = svd(this.seen(m), { r, seed, iterations });
    const columns = transposed(Float64Array.from(v.readSync()), r, K);
    solveLower(this.#l, K, columns, r, true);
    const rows = Float32Array.from(transposed(columns, K, r));
    return { u, s, v: Tensor.from(rows, [r, K], { device }) };
  }
}

/**
 * The repair of rank r of a quantised weight whose error in the layer's output is least: the triplets of (Δ · L)ᵣ of
 * Δ = w − quantise(w), turned back by {@link SeenMatrix}.
 * @param second [K, K] R, row by row
 * @returns Δ ≈ u · diag(s) · v; rows of v are not orthonormal
 */
export function weightedRepair(
  start: string,
  layer: StartLayer,
  second: Float64Array,
  options: TripletOptions,
): Svd {
  const error = multiplyAdd({ a: layer.w, c: decoded(layer.quantise(layer.w)), beta: -1 });
  return new SeenMatrix(start, second, layer).triplets(error, options);
}
