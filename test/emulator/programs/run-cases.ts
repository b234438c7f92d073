/**
 * Runs the kernel cases and prints one line each, `hash name`; a case that throws prints `error: ...`
 * in place of the hash. run-cases [--device D] [--filter REGEX] [--list]
 */
import { parseArgs } from 'node:util';
import { type Device, memoryUsage, scope, synchronize } from '../../../lib/index.js';
import { kernelCases } from '../cases.js';

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda-emulated' },
    filter: { type: 'string', default: '' },
    list: { type: 'boolean', default: false },
  },
});
const device = values.device as Device;
const wanted = new RegExp(values.filter);

for (const { name, run } of kernelCases().filter(({ name }) => wanted.test(name))) {
  if (values.list) {
    console.log(name);
    continue;
  }
  const outcome = await scope(() => run(device)).catch(
    (error: Error) => `error: ${error.message.replaceAll('\n', ' | ')}`,
  );
  console.log(`${outcome}\t${name}`);
}
if (!values.list) {
  await synchronize(device).catch(() => undefined);
  const { liveBytes, liveTensors } = memoryUsage(device);
  console.log(`${liveBytes} bytes in ${liveTensors} tensors are left\t(memory)`);
}
