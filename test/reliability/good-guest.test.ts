/** The process that loads the addon stays as it was, and answers while kernels run. */
import { expect, it } from 'vitest';
import { percentile, reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

interface Report {
  before: { arithmetic: number[] };
  after: object;
  idle: number[];
  busy: number[];
  /** p99 in ms, of a timer of 1 ms. */
  lag: number;
  stillBusy: boolean;
}

it('leaves floating point, signals and locale alone, and the event loop free', {
  timeout: 120_000 * TIME_SCALE,
}, async () => {
  const report = reportOf<Report>(await runProgram('good-guest', [], { leakCheck: false }));
  expect(report.after).toEqual(report.before);
  expect(report.before.arithmetic[0]).toBe(5e-324);
  // The kernels ran during all of the measurement.
  expect(report.stillBusy).toBe(true);
  // Node's own thread pool is not ours: a read waits for no kernel, which would be seconds.
  expect(percentile(report.busy, 0.5)).toBeLessThanOrEqual(
    20 * TIME_SCALE + percentile(report.idle, 0.5),
  );
  expect(report.lag).toBeLessThanOrEqual(50 * TIME_SCALE);
});
