import { type Device, resolveDevice } from '../../../core/device.js';
import { fail, wrongType } from '../../../core/errors.js';
import { Tensor } from '../../../core/tensor.js';
import { checkInteger, newArray, readNumbers } from '../../../core/validate.js';

/** @throws ERR_TYPE, ERR_VALUE */
function readTokens(op: string, operand: string, list: unknown): number[] {
  return readNumbers(op, operand, list, (name, value) => {
    if (typeof value !== 'number') throw wrongType(op, name, 'a number', value);
    return value;
  });
}

/**
 * Where an activated LoRA starts to act: the last occurrence of the invocation tokens, counted from
 * the end of the sequence to their first token; −1 if they do not occur.
 * @param ids token ids, one list per sequence
 * @param invocation `invocationTokens` of the adapter's config (PEFT's `alora_invocation_tokens`)
 * @throws ERR_TYPE; ERR_VALUE for a list of more than 2^31 - 1 tokens
 * @example
 * invocationOffsets([[5, 1, 2, 9]], [1, 2]); // [3]
 */
export function invocationOffsets(
  ids: readonly ArrayLike<number>[],
  invocation: readonly number[],
): number[] {
  const op = 'invocationOffsets';
  if (!Array.isArray(ids)) throw wrongType(op, 'ids', 'an array of sequences', ids);
  const tokens = readTokens(op, 'invocation', invocation);
  const offsets: number[] = [];
  for (let i = 0; i < ids.length; i++) {
    const sequence = readTokens(op, `ids[${i}]`, ids[i]);
    offsets.push(tokens.length === 0 ? -1 : offsetOf(sequence, tokens));
  }
  return offsets;
}

function offsetOf(sequence: readonly number[], tokens: readonly number[]): number {
  for (let start = sequence.length - tokens.length; start >= 0; start--) {
    if (tokens.every((token, i) => sequence[start + i] === token)) return sequence.length - start;
  }
  return -1;
}

/**
 * The `active` input of method `alora`: 1 for the last `offset` tokens of each sequence, 0 before. An
 * offset of 0 or below leaves the sequence to the base model; one longer than the sequence covers all
 * of it.
 * @param T tokens in a sequence
 * @returns [sequences, T, 1]
 * @throws ERR_TYPE; ERR_VALUE for more than 2^31 tokens in total; ERR_DEVICE, ERR_OOM
 * @example
 * const active = activeTokens([3, 0], 8); // [2, 8, 1]: the last 3 tokens of the first sequence
 * const { y } = adapter.forward(x, w, { inputs: { active } });
 */
export function activeTokens(offsets: readonly number[], T: number, device?: Device): Tensor {
  const op = 'activeTokens';
  const own = readNumbers(op, 'offsets', offsets, (name, value) => {
    if (typeof value !== 'number') throw wrongType(op, name, 'a number', value);
    if (Number.isNaN(value)) fail('ERR_VALUE', op, name, 'a number of tokens', 'NaN');
    return value;
  });
  checkInteger(op, 'T', T, 0, 2 ** 31);
  const count = own.length;
  if (!(count * T <= 2 ** 31)) {
    fail('ERR_VALUE', op, 'T', `at most ${2 ** 31} tokens in all`, `${count} x ${T}`);
  }
  const on = resolveDevice(op, device);
  const values = newArray(op, Float32Array, count * T);
  own.forEach((offset, i) => {
    const end = (i + 1) * T;
    values.fill(1, end - Math.min(Math.max(Math.floor(offset), 0), T), end);
  });
  return Tensor.from(values, [count, T, 1], { device: on });
}
