import type { Device } from '../core/device.js';
import { deviceInfo } from '../core/device.js';
import type { DType } from '../core/dtype.js';

/** Instruction sets that multiply bf16 faster than f32. */
const kFastSets = /^avx512-(bf16|amx)$/;

/** The dtype of activations in which a device trains fastest: bf16 where it has such products, else f32. */
export function fastestDType(device: Device): DType {
  if (device.startsWith('cuda')) return 'bf16';
  return kFastSets.test(deviceInfo(device).isa ?? '') ? 'bf16' : 'f32';
}
