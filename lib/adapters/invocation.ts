import type { Device } from '../core/device.js';
import { Tensor } from '../core/tensor.js';

/**
 * Where an activated LoRA begins to act: the last place where the invocation tokens stand, counted
 * from the end of the sequence to their start; −1 where they do not.
 * @param ids token ids, a sequence each
 * @param invocation `invocationTokens` of the adapter's config (PEFT's `alora_invocation_tokens`)
 * @example
 * invocationOffsets([[5, 1, 2, 9]], [1, 2]); // [3]
 */
export function invocationOffsets(
  ids: readonly ArrayLike<number>[],
  invocation: readonly number[],
): number[] {
  return ids.map((sequence) => {
    const { length } = invocation;
    if (length === 0) return -1;
    for (let start = sequence.length - length; start >= 0; start--) {
      if (invocation.every((token, i) => sequence[start + i] === token)) {
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
 */
export function activeTokens(offsets: readonly number[], T: number, device?: Device): Tensor {
  const values = Float32Array.from({ length: offsets.length * T }, (_, at) => {
    const offset = offsets[Math.floor(at / T)] as number;
    return T - (at % T) <= offset ? 1 : 0;
  });
  return Tensor.from(values, [offsets.length, T, 1], device === undefined ? {} : { device });
}
