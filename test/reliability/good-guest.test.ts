/** The process that loads the addon stays as it was, and answers while kernels run. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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

const x64 = process.arch === 'x64';
if (!x64) console.warn('not run: denormals turned off, which is done by a register of x86-64');

it.runIf(x64)('computes with denormals where another library has turned them off', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-denormals-'));
  try {
    const source = join(import.meta.dirname, 'flush_denormals.c');
    execFileSync('gcc', ['-O1', '-shared', '-fPIC', source, '-o', join(folder, 'flush.so')]);
    const preload = [process.env.LD_PRELOAD, join(folder, 'flush.so')].filter(Boolean).join(' ');
    const report = reportOf<{ results: Record<string, number[]>; flushed: boolean }>(
      await runProgram('denormals', [], { env: { LD_PRELOAD: preload }, leakCheck: false }),
    );
    // The library did its worst to the JavaScript thread, and our threads did not inherit it.
    expect(report.flushed).toBe(true);
    const kept = [1, 0x0000ffff, 0x007fffff, 0x80000001];
    expect(report.results).toEqual({ cpu: kept, reference: kept });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
