/** Runs one part of the counted cases; the driver's trace is the result. count-cases PART */
import { scope, synchronize } from '../../../lib/index.js';
import { COUNTED_PARTS } from '../counted-cases.js';

const part = COUNTED_PARTS[Number(process.argv[2])];
if (part === undefined) throw new Error(`count-cases: no part ${process.argv[2]}`);
await scope(async () => {
  part.run('cuda-emulated');
  await synchronize('cuda-emulated');
});
