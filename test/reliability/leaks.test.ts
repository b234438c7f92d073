/** Nothing is left behind: exact counters after many calls, and the memory of the process. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Device, memoryUsage, synchronize } from '../../lib/index.js';
import { repetitions, reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';
import { everyOp, type Operations } from './programs/every-op.js';

usePrograms();

const DEVICES: readonly Device[] = ['cpu', 'reference'];

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
  const rounds = repetitions(300, 10_000);
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

interface Slope {
  bytesPerCall: number;
}

const LONG = { timeout: 300_000 * TIME_SCALE };

describe('memory of the process', () => {
  const calls = String(repetitions(10_000, 100_000));
  const limit = repetitions(64, 8);
  const slope = async (leakBytes: number) =>
    reportOf<Slope>(
      await runProgram('rss-slope', [calls, String(leakBytes)], {
        nodeArgs: ['--expose-gc'],
        timeout: LONG.timeout,
      }),
    ).bytesPerCall;

  it('a planted leak of 1 KiB a call is seen', LONG, async () => {
    expect(await slope(1024)).toBeGreaterThan(512);
  });

  it(`mixed ops grow it by at most ${limit} bytes a call`, LONG, async () => {
    expect(await slope(0)).toBeLessThanOrEqual(limit);
  });

  it('tensors that are dropped and not disposed stay bounded', LONG, async () => {
    const { peakBytes, madeBytes } = reportOf<{ peakBytes: number; madeBytes: number }>(
      await runProgram('dropped-tensors', [], { timeout: LONG.timeout }),
    );
    expect(madeBytes).toBeGreaterThan(2e9);
    expect(peakBytes).toBeLessThan(0.75e9);
  });
});
