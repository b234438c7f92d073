import { checkTensor } from '../../core/check-tensor.js';
import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { showShape } from '../../core/validate.js';

/** A matrix as float64 values on the host. */
export interface HostMatrix {
  readonly rows: number;
  readonly columns: number;
  /** Row by row. */
  readonly values: Float64Array;
}

/**
 * Reads a matrix of any dtype.
 * @throws ERR_TYPE · ERR_SHAPE · ERR_NON_FINITE · ERR_DISPOSED
 */
export function readMatrix(op: string, name: string, tensor: unknown): HostMatrix {
  const a = checkTensor(op, name, tensor);
  const [rows, columns] = a.shape;
  if (a.shape.length !== 2 || rows === undefined || columns === undefined) {
    fail('ERR_SHAPE', op, name, 'a matrix', showShape(a.shape));
  }
  return { rows, columns, values: finite(op, name, Float64Array.from(a.readSync())) };
}

/** @throws as {@link readMatrix} · ERR_SHAPE if it is not square */
export function readSquare(op: string, name: string, tensor: unknown): HostMatrix {
  const matrix = readMatrix(op, name, tensor);
  const { rows, columns } = matrix;
  if (rows !== columns) fail('ERR_SHAPE', op, name, 'square', showShape([rows, columns]));
  return matrix;
}

function finite(op: string, name: string, values: Float64Array): Float64Array {
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at >= 0) fail('ERR_NON_FINITE', op, name, 'finite', `${values[at]} at ${at}`);
  return values;
}

/** Values as an f32 tensor beside another. */
export function tensorLike(
  values: Float64Array | Float32Array,
  shape: readonly number[],
  { device }: Pick<Tensor, 'device'>,
): Tensor {
  return Tensor.from(Float32Array.from(values), shape, { device });
}
