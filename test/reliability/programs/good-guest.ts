/** What the addon does to the process that loads it, before and after, as one line of JSON. */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { everyOp } from './every-op.js';
import { queueLongWork } from './long-kernel.js';

/** Signals of this process that are caught, ignored or blocked. */
function signals(): string[] {
  const status = readFileSync('/proc/self/status', 'utf8');
  return ['SigBlk', 'SigIgn', 'SigCgt'].map(
    (row) => new RegExp(`^${row}:\\s+(\\w+)`, 'm').exec(status)?.[1] ?? '',
  );
}

/** JavaScript's own arithmetic, where a changed floating-point mode would show. */
function arithmetic(): number[] {
  const denormal = Number.MIN_VALUE;
  const third = 1 / 3;
  return [denormal / 1, denormal * 3, 2 ** -1060 / 2, third, -third, Math.sqrt(2), 0.1 + 0.2];
}

const state = () => ({
  arithmetic: arithmetic(),
  signals: signals(),
  number: (1234.5).toLocaleString(),
  umask: process.umask(),
});

/** ms of 40 reads of a small file, one after another. */
async function readLatencies(): Promise<number[]> {
  const times = [];
  for (let i = 0; i < 40; i++) {
    const start = performance.now();
    await readFile(new URL(import.meta.url));
    times.push(performance.now() - start);
  }
  return times;
}

const before = state();
for (const device of ['cpu', 'reference'] as const) {
  const operations = await everyOp(device);
  for (let round = 0; round < 15; round++) {
    for (const call of operations.calls.values()) await call();
  }
}
const after = state();

const idle = await readLatencies();
const delay = monitorEventLoopDelay({ resolution: 1 });
// One device at a time, so that a core is left for the event loop on a machine of two.
const last = queueLongWork('reference', 'lora');
let done = false;
void last.read().then(() => {
  done = true;
});
delay.enable();
const busy = await readLatencies();
await new Promise((resolve) => setTimeout(resolve, 500));
delay.disable();
console.log(
  JSON.stringify({ before, after, idle, busy, lag: delay.percentile(99) / 1e6, stillBusy: !done }),
);
process.exit(0);
