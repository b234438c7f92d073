/**
 * Growth of the process by mixed ops: rss-slope CALLS NATIVE_LEAK SCRIPT_LEAK, the leaks being bytes
 * a call that are kept on purpose. Two slopes, each of Theil and Sen over 40 samples that follow a
 * garbage collection, past a warm-up:
 *
 *   native   resident memory without what V8 holds for its own heap and its compiler
 *   script   live objects of the JavaScript heap
 *
 * The resident memory as a whole would not do: V8 keeps the pages of its heap, and enlarges its young
 * generation in steps of megabytes, while the live objects in it stay the same. Run it with a fixed
 * young generation, one collector thread and without the optimising compiler, whose background work
 * comes and goes by hundreds of kilobytes; then what is left is flat to the byte.
 */
import { getHeapStatistics } from 'node:v8';
import { everyOp } from './every-op.js';

const [calls, nativeLeak, scriptLeak] = process.argv.slice(2).map(Number) as [
  number,
  number,
  number,
];
const SAMPLES = 40;

const operations = await everyOp('cpu');
const names = [...operations.calls.keys()];
const kept: unknown[] = [];
const collect = (globalThis as { gc?: () => void }).gc;
if (collect === undefined) throw new Error('run with --expose-gc');

const native: Array<[number, number]> = [];
const script: Array<[number, number]> = [];
// The allocator and the compiler still settle for the first tens of thousands of calls.
const warmUp = Math.max(Math.ceil(calls / 5), 20_000);
const step = Math.ceil(calls / SAMPLES);
for (let i = 0; i < warmUp + calls; i++) {
  await operations.calls.get(names[i % names.length] ?? '')?.();
  if (nativeLeak > 0) kept.push(Buffer.allocUnsafeSlow(nativeLeak).fill(1));
  if (scriptLeak > 0) kept.push(new Array(scriptLeak / 8).fill(i));
  if (i >= warmUp && (i - warmUp) % step === 0) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
    const heap = getHeapStatistics();
    const resident = process.memoryUsage.rss();
    native.push([i, resident - heap.total_physical_size - heap.malloced_memory]);
    script.push([i, heap.used_heap_size]);
  }
}

function slope(points: ReadonlyArray<[number, number]>): number {
  const slopes = points.flatMap(([x0, y0], i) =>
    points.slice(i + 1).map(([x1, y1]) => (y1 - y0) / (x1 - x0)),
  );
  return slopes.sort((a, b) => a - b)[slopes.length >> 1] ?? Number.NaN;
}
console.log(
  JSON.stringify({
    native: slope(native),
    script: slope(script),
    kept: kept.length,
    samples: native,
  }),
);
