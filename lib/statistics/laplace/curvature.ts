/**
 * Kronecker-factored curvature of the factors of adapters: the generalised Gauss-Newton matrix of the cross-entropy, as a
 * product of two covariances per factor (Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate
 * Curvature, 2015, arXiv:1503.05671). Rows of an example, like tokens, count as independent (Eschenhagen and others,
 * Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures, 2023, arXiv:2311.00636: "expand").
 */

import { fail } from '../../core/errors.js';
import { outsideScopes, scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { symmetricEigen } from '../../linalg/symmetric-eigen.js';
import { svd } from '../../linalg/tensors/svd.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { weightGrad } from '../../ops/weight-grad.js';
import type { FactorRows } from '../per-example/tape.js';

/** Sums over rows of one factor: those of the side of rank r, and of the side of N or K features. */
interface Sums {
  readonly role: FactorRows['role'];
  readonly small: Tensor;
  readonly big: Tensor;
  /** Rows of inputs. */
  rows: number;
}

/** Adds up covariances of inputs and of gradients, factor by factor. */
export class KroneckerSums {
  readonly #sums = new Map<Tensor, Sums>();

  /**
   * Adds the rows of a backward pass.
   * @param first is it the first of the passes over these inputs? The others have the same inputs
   */
  add(rows: readonly FactorRows[], first: boolean): void {
    for (const { factor, small, big, role, scaling } of rows) {
      const own = this.#of(factor, role, small, big);
      // Of loraA the inputs are the big side, of loraB the small one.
      const [input, gradient] = role === 'down' ? ['big', 'small'] : ['small', 'big'];
      if (first) own.rows += small.shape[0] ?? 0;
      scope(() => {
        for (const [side, tensor] of [
          ['small', small],
          ['big', big],
        ] as const) {
          if (side === input && !first) continue;
          const scaled =
            side === gradient && scaling !== 1
              ? multiplyAdd({ a: tensor, alpha: scaling, dtype: 'f32' })
              : tensor;
          weightGrad(scaled, scaled, { accumulateInto: own[side] });
        }
      });
    }
  }

  #of(factor: Tensor, role: FactorRows['role'], small: Tensor, big: Tensor): Sums {
    const known = this.#sums.get(factor);
    if (known !== undefined) return known;
    const { device } = factor;
    const square = (n: number) => outsideScopes(() => Tensor.zeros([n, n], { device }));
    const made: Sums = {
      role,
      small: square(small.shape[1] ?? 0),
      big: square(big.shape[1] ?? 0),
      rows: 0,
    };
    this.#sums.set(factor, made);
    return made;
  }

  /**
   * The eigenvalues and vectors of what was added.
   * @param rank of the larger sides; a side of at most this size is decomposed whole
   */
  decompose(rank: number): FactorCurvature[] {
    return [...this.#sums].map(([factor, { small, big, rows }]) => ({
      factor,
      small: wholeSide(small),
      big: (big.shape[0] ?? 0) <= rank ? wholeSide(big) : leadingSide(big, rank),
      rows,
    }));
  }

  dispose(): void {
    for (const { small, big } of this.#sums.values()) {
      small.dispose();
      big.dispose();
    }
    this.#sums.clear();
  }
}

/** Eigenvalues of one side, and its eigenvectors. */
export interface CurvatureSide {
  /** [k], at least 0 */
  readonly values: Float64Array;
  /** [k, n]: orthonormal rows. */
  readonly vectors: Tensor;
  /** Does it have all n of them? */
  readonly whole: boolean;
}

/** The curvature of one factor: (1 / rows) · small ⊗ big, with eigenvalues smallᵢ · bigⱼ / rows. */
export interface FactorCurvature {
  readonly factor: Tensor;
  readonly small: CurvatureSide;
  readonly big: CurvatureSide;
  readonly rows: number;
}

function wholeSide(sum: Tensor): CurvatureSide {
  const [n = 0] = sum.shape;
  const a = Float64Array.from(sum.readSync());
  if (!a.every(Number.isFinite))
    fail('ERR_NON_FINITE', 'laplace', 'the curvature', 'finite', 'NaN');
  const { values, vectors } = symmetricEigen(a, n);
  const rows = outsideScopes(() =>
    Tensor.from(Float32Array.from(vectors), [n, n], { device: sum.device }),
  );
  return { values: values.map((value) => Math.max(0, value)), vectors: rows, whole: true };
}

function leadingSide(sum: Tensor, rank: number): CurvatureSide {
  const { s, v } = outsideScopes(() => {
    const { u, s, v } = svd(sum, { r: rank });
    u.dispose();
    return { s, v };
  });
  return { values: s, vectors: v, whole: false };
}
