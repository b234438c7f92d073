import { type Device, resolveDevice } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, newArray, readOptions } from '../core/validate.js';

/**
 * Rows of zeros with a 1 at each id: this makes an embedding a linear layer. With the table's
 * transpose [D, V] as the weight and `oneHot(ids, V)` as x, a LoRA of an embedding (PEFT's
 * `lora_embedding_A` [r, V] and `lora_embedding_B` [D, r]) is a LoRA of a linear layer. It costs V
 * values per token, so it is meant for tables of a few thousand rows, and for checks.
 * @param ids token ids, each from 0 to V − 1
 * @returns [ids, V] f32
 * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
 * @example
 * const { y } = adapter.forward(oneHot(ids, 25), tableTransposed);
 */
export function oneHot(ids: ArrayLike<number>, V: number, options?: { device?: Device }): Tensor {
  const op = 'oneHot';
  if (ids === null || typeof ids !== 'object' || typeof ids.length !== 'number') {
    throw wrongType(op, 'ids', 'an array of numbers', ids);
  }
  const count = checkInteger(op, 'V', V, 1, 2 ** 31 - 1);
  const device = resolveDevice(op, readOptions(op, options, { device: true }).device);
  const { length } = ids;
  if (!(length * count <= 2 ** 31)) {
    fail('ERR_VALUE', op, 'ids', `at most ${2 ** 31} values in all`, `${length} x ${count}`);
  }
  const values = newArray(op, Float32Array, length * count);
  for (let i = 0; i < length; i++) {
    values[i * count + checkInteger(op, `ids[${i}]`, ids[i], 0, count - 1)] = 1;
  }
  return Tensor.from(values, [length, count], { device });
}
