/** Values as the floating point types of GGUF. */

import { fail } from '../../../core/errors.js';
import { bytesOf } from '../../raw-tensor.js';
import { halfBits } from './half.js';

/** The types of dense weights that llama.cpp reads. */
export const floatTypes = ['F32', 'F16', 'BF16'] as const;
export type GgufFloatType = (typeof floatTypes)[number];

export const isFloatType = (type: string): type is GgufFloatType =>
  (floatTypes as readonly string[]).includes(type);

/**
 * The bytes of values, rounded to nearest even.
 * @param operand what they are, in the message
 * @throws ERR_VALUE if a finite value becomes an infinity
 */
export function floatBytes(
  op: string,
  operand: string,
  type: GgufFloatType,
  values: Float32Array,
): Uint8Array<ArrayBuffer> {
  if (type === 'F32') return bytesOf(values).slice();
  const bits = type === 'F16' ? Uint16Array.from(values, halfBits) : bf16Bits(values);
  const beyond = bits.findIndex((half, i) => {
    const exponent = type === 'F16' ? 0x7c00 : 0x7f80;
    return (half & exponent) === exponent && Number.isFinite(values[i] as number);
  });
  if (beyond >= 0)
    fail('ERR_VALUE', op, operand, `numbers that ${type} holds`, `${values[beyond]}`);
  return new Uint8Array(bits.buffer);
}

/** Rounded to nearest even; a NaN keeps its sign. */
function bf16Bits(values: Float32Array): Uint16Array<ArrayBuffer> {
  const words = new Uint32Array(Float32Array.from(values).buffer);
  return Uint16Array.from(words, (word) =>
    (word & 0x7fffffff) > 0x7f800000
      ? (word >>> 16) | 0x40
      : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16,
  );
}
