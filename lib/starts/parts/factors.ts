import { Tensor } from '../../core/tensor.js';
import type { Svd } from '../../linalg/tensors/svd.js';
import { multiplyAdd } from '../../ops/elementwise.js';

/** Rows of a [r, K], each times its factor. */
export function scaleRows(a: Tensor, factors: ArrayLike<number>): Tensor {
  const { device, shape } = a;
  const column = Tensor.from(Float32Array.from(factors), [shape[0] ?? 0, 1], { device });
  return multiplyAdd({ a, b: column });
}

/** Columns of a [N, r], each times its factor. */
export function scaleColumns(a: Tensor, factors: ArrayLike<number>): Tensor {
  const { device, shape } = a;
  const row = Tensor.from(Float32Array.from(factors), [shape[1] ?? 0], { device });
  return multiplyAdd({ a, b: row });
}

/** Singular triplets as factors of equal size whose update is their sum: `scaling · loraB · loraA = u · diag(s) · v`. */
export function balanced({ u, s, v }: Svd, scaling: number): { loraA: Tensor; loraB: Tensor } {
  const roots = s.map((value) => Math.sqrt(value / scaling));
  return { loraA: scaleRows(v, roots), loraB: scaleColumns(u, roots) };
}
