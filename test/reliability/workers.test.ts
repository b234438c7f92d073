/** Worker threads and the end of the process, in the middle of kernels. */
import { describe, expect, it } from 'vitest';
import {
  percentile,
  repetitions,
  reportOf,
  runProgram,
  TIME_SCALE,
  usePrograms,
} from './program.js';

usePrograms();

interface Report {
  times: number[];
  finished: number[];
  start: { threads: number; files: number };
  end: { threads: number; files: number };
  sums: number;
}

const LONG = 180_000 * TIME_SCALE;

describe('worker.terminate() in the middle of a kernel', () => {
  const terminations = repetitions(20, 200, 7);
  it.each([
    ['reference', 'lora', 'shared'],
    ['reference', 'lora', 'alone'],
    ['cpu', 'lora', 'shared'],
    ['cpu', 'lora', 'alone'],
    ['cpu', 'sync', 'shared'],
    ['reference', 'sync', 'alone'],
  ])('%s, %s, addon %s', { timeout: LONG }, async (device, work, mode) => {
    const report = reportOf<Report>(
      await runProgram('terminate', [String(terminations), device, work, mode], { timeout: LONG }),
    );
    expect(report.times).toHaveLength(terminations);
    const at = [0.5, 0.9, 0.99, 1].map((p) => percentile(report.times, p).toFixed(1));
    console.log(`terminate ${device} ${work} ${mode}: p50, p90, p99, max = ${at.join(', ')} ms`);
    // Not one of them may have come to its end by itself: then nothing was interrupted.
    expect(report.finished).toEqual([]);
    // Of a few rounds the slowest only tells how busy the machine is.
    const share = terminations >= 100 ? 0.99 : 0.5;
    expect(percentile(report.times, share)).toBeLessThanOrEqual(50 * TIME_SCALE);
    expect(report.end).toEqual(report.start);
    expect(report.sums).toBe(mode === 'shared' ? 128 : 0);
  });

  it.each([
    ['reference', 'quantize'],
    ['reference', 'wrap'],
    ['cpu', 'wrap'],
    ['reference', 'random'],
    ['reference', 'cast'],
    ['cpu', 'quantize'],
    ['cpu', 'random'],
    ['cpu', 'cast'],
  ])('%s, %s', { timeout: LONG }, async (device, work) => {
    const report = reportOf<Report>(
      await runProgram('terminate', [String(repetitions(8, 8, 3)), device, work, 'shared'], {
        timeout: LONG,
      }),
    );
    expect(report.finished).toEqual([]);
    expect(percentile(report.times, 0.5)).toBeLessThanOrEqual(50 * TIME_SCALE);
    expect(report.sums).toBe(128);
  });
});

it('a worker ends without waiting for the kernels of others', { timeout: LONG }, async () => {
  const report = reportOf<{
    times: number[];
    duringFirst: boolean;
    wrong: number;
    firstTook: number;
  }>(await runProgram('neighbours', []));
  expect(report.duringFirst).toBe(true);
  expect(percentile(report.times, 0.5)).toBeLessThanOrEqual(50 * TIME_SCALE);
  expect(report.wrong).toBe(0);
});

describe('the end of the process in the middle of a kernel', () => {
  const rounds = repetitions(3, 50, 1);
  const ends = [
    ['exit', 7, null],
    ['throw', 1, null],
    ['wait', null, 'SIGTERM'],
  ] as const;
  for (const device of ['reference', 'cpu']) {
    it.each(ends)(`${device}: %s`, { timeout: LONG }, async (how, status, signal) => {
      const times: number[] = [];
      for (let i = 0; i < rounds; i++) {
        const ended = await runProgram('exit', [device, how], {
          leakCheck: false,
          whenReady: (pid) => signal !== null && process.kill(pid, signal),
        });
        expect(ended).toMatchObject({ status, signal });
        expect(ended.out).not.toMatch(/finished|failed/);
        times.push(ended.endedAt - Number(ended.out.split('\n')[0]));
      }
      expect(percentile(times, 0.5)).toBeLessThanOrEqual(250 * TIME_SCALE);
    });
  }
});
