/**
 * Worker threads and the end of the process while a GPU works, over the emulator. Work that is in
 * the stream cannot be taken back, so what is looked at is who waits for it: nobody, except where it
 * touches memory that goes with the worker.
 */
import { describe, expect, it } from 'vitest';
import { devices } from '../../lib/index.js';
import {
  percentile,
  repetitions,
  reportOf,
  runProgram,
  TIME_SCALE,
  usePrograms,
} from './program.js';

usePrograms();

const DEVICE = 'cuda-emulated';
const row = devices().find(({ device }) => device === DEVICE);
if (row?.available !== true) console.warn(`no worker is ended: ${row?.reason}`);

interface Report {
  times: number[];
  finished: number[];
  start: { threads: number; files: number };
  end: { threads: number; files: number };
  sums: number;
}

const LONG = 300_000 * TIME_SCALE;

describe.skipIf(row?.available !== true)('worker.terminate() while the GPU works', () => {
  const terminations = repetitions(8, 40);

  it.each(['lora', 'sync'])('%s: nobody waits for the GPU', { timeout: LONG }, async (work) => {
    const report = reportOf<Report>(
      await runProgram('terminate', [String(terminations), DEVICE, work, 'shared'], {
        timeout: LONG,
      }),
    );
    expect(report.times).toHaveLength(terminations);
    const at = [0.5, 0.9, 1].map((p) => percentile(report.times, p).toFixed(1));
    console.log(`terminate ${DEVICE} ${work}: p50, p90, max = ${at.join(', ')} ms`);
    expect(report.finished).toEqual([]);
    expect(percentile(report.times, 0.5)).toBeLessThanOrEqual(50 * TIME_SCALE);
    expect(report.end.files).toBe(report.start.files);
    expect(report.sums).toBe(128);
  });

  it('wrap: memory of the worker is not taken from under a kernel', { timeout: LONG }, async () => {
    const report = reportOf<Report>(
      await runProgram('terminate', ['3', DEVICE, 'wrap', 'shared'], { timeout: LONG }),
    );
    expect(report.times).toHaveLength(3);
    expect(report.sums).toBe(128);
  });
});

describe.skipIf(row?.available !== true)('the end of the process while the GPU works', () => {
  const ends = [
    ['exit', 7, null],
    ['throw', 1, null],
    ['wait', null, 'SIGTERM'],
  ] as const;
  it.each(ends)('%s', { timeout: LONG }, async (how, status, signal) => {
    const times: number[] = [];
    for (let i = 0; i < repetitions(5, 50); i++) {
      const ended = await runProgram('exit', [DEVICE, how], {
        leakCheck: false,
        whenReady: (pid) => signal !== null && process.kill(pid, signal),
      });
      expect(ended).toMatchObject({ status, signal });
      expect(ended.out).not.toMatch(/finished|failed/);
      times.push(ended.endedAt - Number(ended.out.split('\n')[0]));
    }
    expect(percentile(times, 0.5)).toBeLessThanOrEqual(500 * TIME_SCALE);
  });
});
