/**
 * Fails each allocation of each op in turn, under test/reliability/failing_malloc.c:
 *   malloc-failure DEVICE. Prints what happened, an object an op.
 */
import { openSync, readSync, writeSync } from 'node:fs';
import { type Device, LowrankError, memoryUsage, synchronize } from '../../../lib/index.js';
import { everyOp } from './every-op.js';

const [device] = process.argv.slice(2) as [Device];
const control = openSync(process.env.FAILING_MALLOC_CONTROL ?? '', 'r+');
const collect = (globalThis as { gc?: () => void }).gc;
if (collect === undefined) throw new Error('run with --expose-gc');

function arm(failAt: number): void {
  writeSync(control, new BigInt64Array([BigInt(failAt), 0n, 0n]), 0, 24, 0);
}

/** Ends the window; was an allocation failed in it? */
function disarm(): boolean {
  const words = new BigInt64Array(3);
  readSync(control, words, 0, 24, 0);
  arm(0);
  return words[2] === 1n;
}

async function live(): Promise<string> {
  // Handles that a failed call had made already go with their JavaScript objects.
  for (let i = 0; i < 3; i++) {
    collect?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const usage = [];
  for (const each of ['cpu', 'reference'] as const) {
    await synchronize(each);
    usage.push(memoryUsage(each).liveBytes, memoryUsage(each).liveTensors);
  }
  return usage.join();
}

const operations = await everyOp(device);
// Everything that is made once and kept is made now.
for (const call of operations.calls.values()) await call();

const report = [];
for (const [name, call] of operations.calls) {
  const before = await live();
  const row = { name, sites: 0, refused: 0, succeeded: 0, other: [] as string[], leaked: '' };
  for (;;) {
    arm(row.sites + 1);
    let failure: unknown;
    try {
      await call();
    } catch (error) {
      failure = error;
    }
    const failed = disarm();
    if (failure !== undefined) {
      if (failure instanceof LowrankError && failure.code === 'ERR_OOM') row.refused++;
      else row.other.push(`${row.sites + 1}: ${String(failure)}`);
    } else if (failed) {
      row.succeeded++;
    }
    if (!failed) break;
    row.sites++;
    // What the failed call queued runs out before the next window.
    await synchronize('cpu');
    await synchronize('reference');
  }
  const after = await live();
  if (after !== before) row.leaked = `${before} -> ${after}`;
  report.push(row);
}
// And everything still works.
for (const call of operations.calls.values()) await call();
console.log(JSON.stringify(report));
