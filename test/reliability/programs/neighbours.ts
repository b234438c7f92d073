/** Terminates workers whose work waits behind a long kernel of this thread's. */
import { Worker } from 'node:worker_threads';
import { matmul, Tensor } from '../../../lib/index.js';

const device = 'reference';
// Some four seconds: the workers start meanwhile.
const [M, K, N] = [2048, 1024, 1024];
const x = Tensor.zeros([M, K], { device });
const w = Tensor.zeros([N, K], { device });
const start = performance.now();
let finished = 0;
const own = [0].map(() => matmul(x, w).read());
void own[0]?.then(() => {
  finished = performance.now() - start;
});
const times: number[] = [];
const workers = [0, 1, 2].map(
  () =>
    new Worker(new URL('./long-kernel.mjs', import.meta.url), {
      workerData: { device, work: 'wrap' },
    }),
);
await Promise.all(
  workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))),
);
for (const worker of workers) {
  const before = performance.now();
  await worker.terminate();
  times.push(performance.now() - before);
}
const duringFirst = finished === 0;
const values = await Promise.all(own);
const wrong = values.filter((row) => row.length !== M * N || row.some((value) => value !== 0));
console.log(JSON.stringify({ times, duringFirst, wrong: wrong.length, firstTook: finished }));
