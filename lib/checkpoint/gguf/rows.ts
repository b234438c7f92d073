/** The order of rows of q and k in GGUF files of Llama. */

import { fail, shown, wrongType } from '../../core/errors.js';
import { checkObject } from '../arguments.js';

/** How {@link permuteGgufRows} orders rows. */
export interface PermuteRowsOptions {
  /** Rows of the tensor: its first dimension. */
  readonly rows: number;
  /** Heads that share the rows; of k the key heads. */
  readonly heads: number;
  /** The order that the result has. */
  readonly to: 'hf' | 'gguf';
}

/**
 * Puts the rows of q or k of a Llama into the order of the other side. With D = rows / heads:
 *
 *   row h · D + 2i + j of the GGUF file = row h · D + j · D/2 + i of the Hugging Face folder, for i < D/2 and j < 2
 *
 * Rows move as whole, so that blocks of quantised types move unchanged. The factor `lora_b` of an adapter and a bias have
 * the same order.
 *
 * @param data the bytes of the tensor, row by row
 * @returns the same rows in the other order, in new memory
 * @throws `ERR_TYPE` · LowrankError `ERR_SHAPE` if heads of an even number of rows do not divide the rows, or rows the
 *   bytes · `ERR_VALUE`
 * @example
 * const { data, shape } = file.read('blk.0.attn_q.weight');
 * const heads = file.metadata.get('llama.attention.head_count')?.value as number;
 * const q = permuteGgufRows(data, { rows: shape[0] as number, heads, to: 'hf' });
 */
export function permuteGgufRows(
  data: Uint8Array,
  options: PermuteRowsOptions,
): Uint8Array<ArrayBuffer> {
  const op = 'permuteGgufRows';
  if (!(data instanceof Uint8Array)) throw wrongType(op, 'data', 'a Uint8Array', data);
  checkObject(op, 'options', options);
  const { rows, heads, to } = options;
  for (const [name, value] of Object.entries({ rows, heads })) {
    if (typeof value !== 'number') throw wrongType(op, name, 'a number', value);
    if (!Number.isSafeInteger(value) || value < 1) {
      fail('ERR_VALUE', op, name, 'a positive integer', String(value));
    }
  }
  if (to !== 'hf' && to !== 'gguf') fail('ERR_VALUE', op, 'to', 'hf or gguf', shown(to));
  if (rows % (2 * heads) !== 0) {
    fail('ERR_SHAPE', op, 'rows', `a multiple of ${2 * heads} for ${heads} heads`, String(rows));
  }
  if (data.length % rows !== 0) {
    fail(
      'ERR_SHAPE',
      op,
      'data',
      `a multiple of ${rows} bytes, one share a row`,
      `${data.length} bytes`,
    );
  }
  const row_bytes = data.length / rows;
  const dims = rows / heads;
  const result = new Uint8Array(data.length);
  for (let row = 0; row < rows; row++) {
    const within = row % dims;
    // `row` counts in the order of the file.
    const hf = row - within + (within % 2) * (dims / 2) + Math.floor(within / 2);
    const [source, target] = to === 'hf' ? [row, hf] : [hf, row];
    result.set(data.subarray(source * row_bytes, (source + 1) * row_bytes), target * row_bytes);
  }
  return result;
}
