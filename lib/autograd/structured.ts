import { Tensor } from '../core/tensor.js';
import { lastDim } from '../core/validate.js';
import { matmul } from '../ops/matmul.js';
import { weightGrad } from '../ops/weight-grad.js';
import { GradientTape, type Value } from './gradient-tape.js';

/** The identity [n, n] in f32. */
export function identity(n: number, device: Tensor['device']): Tensor {
  const values = new Float32Array(n * n);
  for (let i = 0; i < n; i++) values[i * n + i] = 1;
  return Tensor.from(values, [n, n], { device });
}

/** The transpose of a [R, C]: a product with the smaller identity, in which every sum has one term. */
function transposed(a: Tensor): Tensor {
  const cols = lastDim(a);
  const rows = a.size / cols;
  return cols <= rows
    ? matmul(identity(cols, a.device), a)
    : weightGrad(a, identity(rows, a.device), { dtype: a.dtype });
}

/** Steps of adapters that are built of blocks, reflections and rotations. */
export class StructuredTape extends GradientTape {
  /** `aᵀ` of a matrix [R, C], one of whose dimensions is small. */
  transpose(a: Value): Value {
    return this.record(transposed(a.tensor), [a], [], (dy, pass) => pass.give(a, transposed(dy)));
  }
}
