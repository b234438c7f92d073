/** What a process may allocate that starts under LOWRANK_MEMORY_LIMIT. */
import {
  type Device,
  deviceInfo,
  type LowrankError,
  memoryUsage,
  Tensor,
} from '../../../lib/index.js';

const kDevices: readonly Device[] = ['cpu', 'reference'];

function codeOf(call: () => unknown): string {
  try {
    call();
    return 'no error';
  } catch (error) {
    return (error as LowrankError).code;
  }
}

const codes = kDevices.map((device) => codeOf(() => Tensor.zeros([2 ** 10, 2 ** 10], { device })));
const memory = kDevices.map((device) => deviceInfo(device).memory);
const liveBytes = codes.includes('ERR_VALUE') ? 0 : memoryUsage('cpu').liveBytes;
console.log(JSON.stringify({ memory, codes, liveBytes }));
