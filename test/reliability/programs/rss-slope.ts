/**
 * Growth of the process by mixed ops: rss-slope CALLS LEAK. LEAK bytes a call are kept on purpose.
 * Slope of Theil and Sen over 40 samples, each after a garbage collection, past a warm-up.
 */
import { everyOp } from './every-op.js';

const [calls, leak] = process.argv.slice(2).map(Number) as [number, number];
const SAMPLES = 40;

const operations = await everyOp('cpu');
const names = [...operations.calls.keys()];
const kept: Buffer[] = [];
const collect = (globalThis as { gc?: () => void }).gc;
if (collect === undefined) throw new Error('run with --expose-gc');

const points: Array<[number, number]> = [];
// The heap of V8 and the allocator still settle for the first tens of thousands of calls.
const warmUp = Math.max(Math.ceil(calls / 5), 20_000);
const step = Math.ceil(calls / SAMPLES);
for (let i = 0; i < warmUp + calls; i++) {
  await operations.calls.get(names[i % names.length] ?? '')?.();
  if (leak > 0) kept.push(Buffer.alloc(leak, 1));
  if (i >= warmUp && (i - warmUp) % step === 0) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
    points.push([i, process.memoryUsage.rss()]);
  }
}
const slopes: number[] = [];
points.forEach(([x0, y0], i) => {
  for (const [x1, y1] of points.slice(i + 1)) slopes.push((y1 - y0) / (x1 - x0));
});
slopes.sort((a, b) => a - b);
console.log(JSON.stringify({ bytesPerCall: slopes[slopes.length >> 1], kept: kept.length }));
