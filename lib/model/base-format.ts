/** How the frozen linear layers of a model are stored. */

import type { Device } from '../core/device.js';
import { type QuantFormat, wholeInt4Blocks } from '../core/formats.js';
import { Tensor } from '../core/tensor.js';
import { quantize } from '../ops/quantize.js';
import type { QuantizedWeight } from '../quant/quantized-weight.js';

/** How base weights are stored; `none` keeps them as dense f32. */
export interface BaseFormat {
  readonly format: QuantFormat | 'none';
  readonly blocksize?: number;
  readonly doubleQuant?: boolean;
}

/**
 * A linear weight on a device, quantised or dense in f32.
 * @param values row-major
 * @param shape [N, K]
 * @param zeroPoints may int4 have them? Not the weight of experts
 * @throws LowrankError as `quantize`
 */
export function storeWeight(
  values: Float32Array,
  shape: readonly [number, number],
  format: BaseFormat,
  device: Device,
  zeroPoints = true,
): QuantizedWeight | Tensor {
  const full = Tensor.from(values, shape, { device });
  if (format.format === 'none') return full;
  try {
    return storeTensor(full, format, zeroPoints);
  } finally {
    full.dispose();
  }
}

/**
 * Quantises a dense weight [N, K] as {@link storeWeight} does.
 * @throws LowrankError as `quantize`
 */
export function storeTensor(
  full: Tensor,
  { format, blocksize, doubleQuant }: BaseFormat,
  zeroPoints = true,
): QuantizedWeight {
  return quantize(full, {
    format: format as QuantFormat,
    ...(blocksize === undefined ? {} : { blocksize }),
    ...(doubleQuant === undefined ? {} : { doubleQuant }),
    ...(zeroPoints &&
    format === 'int4' &&
    !doubleQuant &&
    wholeInt4Blocks(full.shape[1] ?? 0, blocksize)
      ? { zeroPoints: true }
      : {}),
  });
}
