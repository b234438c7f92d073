/** Every op on both devices, some rounds, and then the end of the script. */
import { everyOp } from './every-op.js';

let calls = 0;
for (const device of ['cpu', 'reference'] as const) {
  const operations = await everyOp(device);
  for (let round = 0; round < 3; round++) {
    for (const call of operations.calls.values()) {
      await call();
      calls++;
    }
  }
  operations.dispose();
}
console.log(JSON.stringify({ calls }));
