import type { DType } from '../core/dtype.js';
import { Tensor } from '../core/tensor.js';
import { lastDim } from '../core/validate.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';

/** Rows begin..end of the identity [n, n]. */
function selector(n: number, begin: number, end: number, device: Tensor['device']): Tensor {
  const values = new Float32Array((end - begin) * n);
  for (let j = begin; j < end; j++) values[(j - begin) * n + j] = 1;
  return Tensor.from(values, [end - begin, n], { device });
}

/** Columns begin..end of a [..., N], f32. */
export function takeColumns(a: Tensor, begin: number, end: number, dtype: DType = 'f32'): Tensor {
  return matmul(a, selector(lastDim(a), begin, end, a.device)).to({ dtype });
}

/** y with `part` added in its columns from `begin` on. */
export function addColumns(y: Tensor, part: Tensor, begin: number): Tensor {
  const end = begin + lastDim(part);
  const placed = matmulInputGrad(part, selector(lastDim(y), begin, end, y.device));
  return multiplyAdd({ a: y, c: placed });
}
