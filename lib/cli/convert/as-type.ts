/** Values as a tensor of any type of GGUF. */

import type { GgufType } from '../../checkpoint/gguf/block-types.js';
import { isBlockType } from '../../checkpoint/gguf/blocks/parts.js';
import type { GgufTensor } from '../../checkpoint/gguf/gguf.js';
import { floatBytes, isFloatType } from '../../checkpoint/gguf/quantize/floats.js';
import { quantizeToGguf } from '../../checkpoint/gguf/quantize/quantize.js';
import { LowrankError } from '../../core/errors.js';
import { kOp } from './conversion.js';

/** @throws what {@link quantizeToGguf} throws · ERR_VALUE for values that a float type does not hold */
export function asGgufType(
  name: string,
  values: Float32Array,
  shape: readonly number[],
  type: GgufType,
): GgufTensor {
  if (isBlockType(type)) return quantizeToGguf(values, shape, type);
  if (isFloatType(type)) {
    return { type, shape, data: floatBytes(kOp, `tensor ${name}`, type, values) };
  }
  throw new LowrankError('ERR_DTYPE', `${kOp}: no weights are in ${type}`, { op: kOp });
}
