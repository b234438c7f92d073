/**
 * Starts workers that keep a device busy and terminates each at a random moment.
 *   terminate COUNT DEVICE WORK alone|shared
 * shared: the main thread has the addon loaded too, and computes afterwards.
 */
import { readdirSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { type Device, Tensor } from '../../../lib/index.js';

const [count, device, work, mode] = process.argv.slice(2) as [string, Device, string, string];

const threads = () => readdirSync('/proc/self/task').length;
const files = () => readdirSync('/proc/self/fd').length;

/** A thread that is ending is still counted: as many as there are for a tenth of a second. */
async function threadsSettled(): Promise<number> {
  const until = performance.now() + 5000;
  let count = threads();
  for (let same = 0; same < 5 && performance.now() < until; same++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    if (threads() !== count) same = -1;
    count = threads();
  }
  return count;
}

async function sumOfOnes(): Promise<number> {
  const ones = Tensor.from(new Float32Array(64).fill(1), [8, 8], { device });
  const values = await ones.to({ dtype: 'bf16' }).read();
  return values.reduce((sum, value) => sum + value, 0);
}

let sums = 0;
if (mode === 'shared') sums = await sumOfOnes();
const times: number[] = [];
const finished: number[] = [];
let start = { threads: 0, files: 0 };
for (let i = 0; i < Number(count); i++) {
  const worker = new Worker(new URL('./long-kernel.mjs', import.meta.url), {
    workerData: { device, work },
  });
  const failed = new Promise<never>((_, reject) => worker.once('error', reject));
  await Promise.race([failed, new Promise((resolve) => worker.once('message', resolve))]);
  worker.once('message', () => finished.push(i));
  await new Promise((resolve) => setTimeout(resolve, Math.random() * 20));
  const before = performance.now();
  await worker.terminate();
  times.push(performance.now() - before);
  // The first rounds start the device threads and the pools of Node itself.
  if (i === 4) start = { threads: await threadsSettled(), files: files() };
}
if (mode === 'shared') sums += await sumOfOnes();
const end = { threads: await threadsSettled(), files: files() };
console.log(JSON.stringify({ times, finished, start, end, sums }));
