import { type Device, resolveDevice } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger } from '../core/validate.js';

/** Arrays of numbers, typed or not. @throws ERR_TYPE */
function checkList(op: string, operand: string, list: unknown): asserts list is ArrayLike<number> {
  const { length } = (typeof list === 'object' && list !== null ? list : {}) as {
    length?: unknown;
  };
  if (typeof length !== 'number') throw wrongType(op, operand, 'an array of numbers', list);
}

/**
 * Where an activated LoRA begins to act: the last place where the invocation tokens stand, counted
 * from the end of the sequence to their start; −1 where they do not.
 * @param ids token ids, a sequence each
 * @param invocation `invocationTokens` of the adapter's config (PEFT's `alora_invocation_tokens`)
 * @throws ERR_TYPE
 * @example
 * invocationOffsets([[5, 1, 2, 9]], [1, 2]); // [3]
 */
export function invocationOffsets(
  ids: readonly ArrayLike<number>[],
  invocation: readonly number[],
): number[] {
  const op = 'invocationOffsets';
  if (!Array.isArray(ids)) throw wrongType(op, 'ids', 'an array of sequences', ids);
  for (const [i, sequence] of ids.entries()) checkList(op, `ids[${i}]`, sequence);
  checkList(op, 'invocation', invocation);
  const tokens = Array.from(invocation);
  return ids.map((sequence: ArrayLike<number>) => {
    const { length } = tokens;
    if (length === 0) return -1;
    for (let start = sequence.length - length; start >= 0; start--) {
      if (tokens.every((token, i) => sequence[start + i] === token)) {
        return sequence.length - start;
      }
    }
    return -1;
  });
}

/**
 * The `active` input of method `alora`: 1 for the last `offset` tokens of each sequence, 0 before. An
 * offset of 0 or below is a sequence of the base model alone; a longer one than the sequence is all
 * of it.
 * @param T tokens in a sequence
 * @returns [sequences, T, 1]
 * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE
 * @example
 * const active = activeTokens([3, 0], 8); // [2, 8, 1]: the last 3 tokens of the first sequence
 * const { y } = adapter.forward(x, w, { inputs: { active } });
 */
export function activeTokens(offsets: readonly number[], T: number, device?: Device): Tensor {
  const op = 'activeTokens';
  checkList(op, 'offsets', offsets);
  const count = offsets.length;
  for (let i = 0; i < count; i++) {
    const offset: unknown = offsets[i];
    if (typeof offset !== 'number') throw wrongType(op, `offsets[${i}]`, 'a number', offset);
    if (Number.isNaN(offset)) fail('ERR_VALUE', op, `offsets[${i}]`, 'a number of tokens', 'NaN');
  }
  checkInteger(op, 'T', T, 0, 2 ** 31);
  const on = resolveDevice(op, device);
  const values = Float32Array.from({ length: count * T }, (_, at) => {
    const offset = offsets[Math.floor(at / T)] as number;
    return T - (at % T) <= offset ? 1 : 0;
  });
  return Tensor.from(values, [count, T, 1], { device: on });
}
