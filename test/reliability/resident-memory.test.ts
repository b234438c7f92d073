/** The memory of the process under many calls, with a planted leak as the control. */
import { describe, expect, it } from 'vitest';
import { repetitions, reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

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
