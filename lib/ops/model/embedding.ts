import { native } from '../../core/binding.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { Tensor } from '../../core/tensor.js';
import { checkFinite, checkSameDevice, orDefault, readOptions } from '../../core/validate.js';
import { type BaseWeight, checkWeight } from '../base-weight.js';
import { Indices } from './indices.js';

/** How {@link embedding} works. */
export interface EmbeddingOptions {
  /** Times each row, in f32; default 1. Gemma's is the square root of D, rounded to its dtype. */
  scale?: number;
  /** Of the result; default that of a dense table, and f32 for a quantised one. */
  dtype?: DType;
}

/**
 * Rows of a table: `y[m] = scale · table[ids[m]]`, a row of zeros where an id is negative. A quantised
 * table is decoded in f32, a row at a time.
 * @param ids M ids, each below V
 * @param table [V, D], dense or quantised
 * @returns y [M, D]
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const x = embedding(Indices.from([3, 1, 4], { limit: 32_000 }), table);
 */
export function embedding(ids: Indices, table: BaseWeight, options?: EmbeddingOptions): Tensor {
  const op = 'embedding';
  const handle = Indices.handleOf(ids, op, 'ids');
  const given = readOptions(op, options, { scale: true, dtype: true });
  const scale = checkFinite(op, 'scale', orDefault(given.scale, 1));
  const { weight, handle: rows, K: D } = checkWeight(op, table, 'table');
  checkSameDevice(op, 'table', weight, ids);
  const own = weight instanceof Tensor ? weight.dtype : 'f32';
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, own));
  const y = native(op, (raw) => raw.embedding(handle, rows, scale, dtype));
  return Tensor.adopt(y, [ids.length, D], dtype, ids.device);
}
