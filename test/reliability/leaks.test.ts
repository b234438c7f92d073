/** Nothing is left behind: exact counters after many calls, and the memory of the process. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Device, devices, memoryUsage, synchronize } from '../../lib/index.js';
import { repetitions, reportOf, runProgram, usePrograms } from './program.js';
import { everyOp, type Operations } from './programs/every-op.js';

usePrograms();

const DEVICES: readonly Device[] = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

async function live(): Promise<number[]> {
  const counts: number[] = [];
  for (const device of DEVICES) {
    await synchronize(device);
    const { liveBytes, liveTensors } = memoryUsage(device);
    counts.push(liveBytes, liveTensors);
  }
  return counts;
}

describe.each(DEVICES)('exact counters on %s', (device) => {
  // The emulated GPU takes milliseconds for what the others do in microseconds.
  const rounds = device === 'cuda-emulated' ? repetitions(20, 500) : repetitions(100, 10_000, 20);
  let operations: Operations;
  let before: number[];
  beforeAll(async () => {
    before = await live();
    operations = await everyOp(device);
  });
  afterAll(async () => {
    operations.dispose();
    expect(await live()).toEqual(before);
  });

  it(`${rounds} calls of every op leave no byte and no tensor`, { timeout: 900_000 }, async () => {
    const start = await live();
    for (const [name, call] of operations.calls) {
      for (let i = 0; i < rounds; i++) await call();
      expect(await live(), name).toEqual(start);
    }
  });

  it('one forgotten tensor shows', async () => {
    const { Tensor } = await import('../../lib/index.js');
    const start = await live();
    const forgotten = Tensor.zeros([3], { device });
    expect(await live()).not.toEqual(start);
    forgotten.dispose();
    expect(await live()).toEqual(start);
  });
});

describe('a process that used every op', () => {
  it('ends by itself', { timeout: 200_000 }, async () => {
    // Under the address sanitizer this is also where a leak shows, at the end of the process.
    const { calls } = reportOf<{ calls: number }>(await runProgram('all-ops', []));
    expect(calls).toBeGreaterThan(60);
  });
});
