/** The memory of the process under many calls, with planted leaks as the control. */
import { describe, expect, it } from 'vitest';
import { repetitions, reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

/** Bytes a call: memory outside V8's heap, and live objects inside it. */
interface Slopes {
  native: number;
  script: number;
}

const LONG = { timeout: 300_000 * TIME_SCALE };
/** A call may cost this much in the end; a lost handle or tensor costs more. */
const LIMIT = 8;
const STEADY = [
  '--expose-gc',
  '--min-semi-space-size=4',
  '--max-semi-space-size=4',
  '--single-threaded-gc',
  '--no-opt',
];

describe('memory of the process', () => {
  const calls = String(repetitions(10_000, 100_000));
  const slopes = async (nativeLeak: number, scriptLeak: number) =>
    reportOf<Slopes>(
      await runProgram('rss-slope', [calls, String(nativeLeak), String(scriptLeak)], {
        nodeArgs: STEADY,
        timeout: LONG.timeout,
      }),
    );

  // Buffers of up to 64 bytes live in the heap of V8, and free space that the allocator already has
  // hides the first megabyte.
  const planted = 256;

  it(`planted leaks of ${planted} bytes a call are seen, native and in objects`, LONG, async () => {
    const { native, script } = await slopes(planted, planted);
    expect(native).toBeGreaterThan(planted / 2);
    expect(script).toBeGreaterThan(planted / 2);
  });

  it(`mixed ops grow it by at most ${LIMIT} bytes a call`, LONG, async () => {
    const { native, script } = await slopes(0, 0);
    expect(native).toBeLessThanOrEqual(LIMIT);
    expect(script).toBeLessThanOrEqual(LIMIT);
  });

  it('tensors that are dropped and not disposed stay bounded', LONG, async () => {
    const { peakBytes, madeBytes } = reportOf<{ peakBytes: number; madeBytes: number }>(
      await runProgram('dropped-tensors', [], { timeout: LONG.timeout }),
    );
    expect(madeBytes).toBeGreaterThan(2e9);
    expect(peakBytes).toBeLessThan(0.75e9);
  });
});
