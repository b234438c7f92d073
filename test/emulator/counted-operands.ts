/** Operands of the counted cases. */
import {
  type Device,
  type DType,
  type QuantizedWeight,
  type QuantizeOptions,
  quantize,
  Tensor,
} from '../../lib/index.js';

/** Made on the host: the kernels of random values and of quantising are counted in `streaming` alone. */
export function random(device: Device, seed: number, shape: number[], dtype: DType): Tensor {
  return Tensor.randn(shape, { seed, std: 0.1, dtype, device: 'cpu' }).to({ device });
}

export function quantized(
  device: Device,
  seed: number,
  shape: number[],
  dtype: DType,
  options: QuantizeOptions,
): QuantizedWeight {
  const dense = Tensor.randn(shape, { seed, std: 0.1, dtype, device: 'cpu' });
  return quantize(dense, options).to({ device });
}
