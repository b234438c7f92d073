import { native } from './binding.js';
import { type Device, resolveDevice } from './device.js';
import { fail, wrongType } from './errors.js';

/**
 * Sets how many bytes of tensors and weights may be live on a device, for the whole process. A call that needs more
 * throws before it takes memory, and what is live stays. Tensors that queued ops still use count; the workspace of a GPU
 * ({@link workspaceBytes}) and memory of {@link Tensor.wrap} do not. Before the first call the budget of every device
 * comes from `LOWRANK_MEMORY_LIMIT`; `memory` of {@link deviceInfo} is never above it.
 * @param bytes a non-negative integer; null: no limit
 * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE
 * @example
 * setMemoryBudget(2 ** 30, 'cpu');
 * try {
 *   Tensor.zeros([2 ** 14, 2 ** 15], { device: 'cpu' });
 * } catch (error) {
 *   console.log((error as LowrankError).code); // ERR_MEMORY_BUDGET
 * }
 */
export function setMemoryBudget(bytes: number | null, device?: Device): void {
  const op = 'setMemoryBudget';
  if (bytes !== null && typeof bytes !== 'number') {
    throw wrongType(op, 'bytes', 'a number or null', bytes);
  }
  if (bytes !== null && !(Number.isSafeInteger(bytes) && bytes >= 0)) {
    fail('ERR_VALUE', op, 'bytes', 'an integer from 0 to 2^53 - 1, or null', String(bytes));
  }
  const target = resolveDevice(op, device);
  native(op, (raw) => raw.setMemoryBudget(target, bytes ?? Number.POSITIVE_INFINITY));
}
