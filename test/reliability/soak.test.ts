/** Ops, devices and dying workers together: LOWRANK_SOAK_SECONDS, some by default. */
import { expect, it } from 'vitest';
import { reportOf, runProgram, usePrograms } from './program.js';

usePrograms();

interface Report {
  before: object;
  after: object;
  calls: number;
  workers: number;
  moreThreads: number;
}

const seconds = Number(process.env.LOWRANK_SOAK_SECONDS ?? 5);
const timeout = seconds * 1000 + 120_000;

it(`${seconds} s of everything at once change no result and leave nothing`, {
  timeout,
}, async () => {
  const report = reportOf<Report>(await runProgram('soak', [String(seconds)], { timeout }));
  expect(report.after).toEqual(report.before);
  expect(report.workers).toBeGreaterThan(0);
  expect(report.calls).toBeGreaterThan(50);
  expect(report.moreThreads).toBe(0);
});
