/**
 * Runs the kernel cases and prints one line each, `hash name`; a case that throws prints `error: ...`
 * in place of the hash. run-cases [--device D] [--filter REGEX] [--list]
 *
 * With --expect FILE, lines of an earlier run, it stops with status 1 at the first case that gives
 * another hash.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { type Device, memoryUsage, scope, synchronize } from '../../../lib/index.js';
import { kernelCases } from '../cases.js';

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda-emulated' },
    filter: { type: 'string', default: '' },
    list: { type: 'boolean', default: false },
    expect: { type: 'string' },
  },
});
const device = values.device as Device;
const wanted = new RegExp(values.filter);
const expected = new Set(values.expect ? readFileSync(values.expect, 'utf8').split('\n') : []);

for (const { name, run } of kernelCases().filter(({ name }) => wanted.test(name))) {
  if (values.list) {
    console.log(name);
    continue;
  }
  const outcome = await scope(() => run(device)).catch(
    (error: Error) => `error: ${error.message.replaceAll('\n', ' | ')}`,
  );
  const line = `${outcome}\t${name}`;
  console.log(line);
  if (values.expect !== undefined && !expected.has(line)) process.exit(1);
}
if (!values.list) {
  await synchronize(device).catch(() => undefined);
  const { liveBytes, liveTensors } = memoryUsage(device);
  console.log(`${liveBytes} bytes in ${liveTensors} tensors are left\t(memory)`);
}
