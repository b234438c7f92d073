import { native } from './binding.js';
import { resolveDevice } from './device.js';
import { checkDType } from './dtype.js';
import { Tensor, type TensorOptions } from './tensor.js';
import { checkDims, checkFinite, readOptions } from './validate.js';

/**
 * A tensor of one value, which the device writes: unlike {@link Tensor.from} it can be part of a captured step.
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_OOM
 * @example
 * const one = full([1], 1, { device: 'cuda' });
 */
export function full(shape: readonly number[], value: number, options?: TensorOptions): Tensor {
  const op = 'full';
  const given = readOptions(op, options, { dtype: true, device: true });
  const dims = checkDims(op, shape);
  const dtype = checkDType(op, 'dtype', given.dtype ?? 'f32');
  const device = resolveDevice(op, given.device);
  const mean = checkFinite(op, 'value', value);
  // A draw from a range of no width.
  return Tensor.adopt(
    native(op, (raw) => raw.randomTensor(device, dtype, dims, 'uniform', 0, 0, mean, 0, null)),
    dims,
    dtype,
    device,
  );
}
