import { fail } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import type { StartLayer } from '../definition/definition.js';

/** @throws ERR_VALUE */
export function gradientOf({ dw, module }: StartLayer): Tensor {
  if (dw === undefined) fail('ERR_VALUE', `start of ${module}`, 'dw', 'observed', 'none');
  return dw;
}
