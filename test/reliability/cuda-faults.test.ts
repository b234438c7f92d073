/**
 * Every call of the CUDA driver fails in turn, over the emulator: what follows is a typed error or a
 * right result, never a wrong one; the process lives, no memory is left, and the CPU device still
 * computes. The table of outcomes is printed. Each fault is a process: without LOWRANK_RELIABILITY=full
 * (npm run fault:cuda) a call fails by `out of memory` and by one other code, in turns, and each code that
 * ends the device meets one call.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { devices } from '../../lib/index.js';
import { repetitions, reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

const folder = mkdtempSync(join(tmpdir(), 'lowrank-faults-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const DEVICE = 'cuda-emulated';
const row = devices().find(({ device }) => device === DEVICE);
if (row?.available !== true) console.warn(`no faults are injected: ${row?.reason}`);

/** The driver's calls, as the table that the backend fills lists them. */
const CALLS = [
  ...readFileSync(
    resolve(import.meta.dirname, '..', '..', 'native', 'cuda', 'driver', 'driver.h'),
    'utf8',
  ).matchAll(/^ {2}X\((cu\w+),/gm),
].map((match) => match[1] as string);

const CODES = {
  'out of memory': 2,
  'invalid context': 201,
  'illegal access': 700,
  'driver too old': 803,
  unknown: 999,
} as const;

/** What a call needs to be reached at all. */
const OOM_FIRST = 'cuMemAllocFromPoolAsync:n=2:code=2';
const START_FAILS = 'cuModuleLoadData:n=1:code=2';
const LAUNCH_FAILS = 'cuLaunchKernelEx:n=1:code=201';
const EVENTS_FAIL = 'cuEventQuery:n=1:code=999';
const REACHED_BY: Record<string, { fault?: string; env?: Record<string, string> }> = {
  cuStreamSynchronize: { fault: OOM_FIRST },
  cuMemPoolTrimTo: { fault: OOM_FIRST },
  cuModuleUnload: { fault: 'cuEventCreate:n=1:code=2' },
  cuMemPoolDestroy: { fault: START_FAILS },
  cuStreamDestroy_v2: { fault: START_FAILS },
  cuDevicePrimaryCtxRelease_v2: { fault: START_FAILS },
  cuEventDestroy_v2: { fault: EVENTS_FAIL },
  cuGetErrorName: { fault: LAUNCH_FAILS },
  cuGetErrorString: { fault: LAUNCH_FAILS },
  cuEventElapsedTime: { env: { LOWRANK_TRACE: '1' } },
  // Only from that compute capability on launches overlap.
  cuFuncGetAttribute: { env: { LOWRANK_EMULATOR_SM: '90' } },
};

interface Report {
  outcomes: Record<string, { outcome: string; message?: string }>;
  synchronised: string;
  liveBytes: number;
  liveTensors: number;
  cpu: number;
  available: boolean;
  reason?: string;
}

let runs = 0;

/** One process with these faults: what it reported, and which calls were failed. */
async function withFaults(
  fault: string,
  env: Record<string, string> = {},
): Promise<{ report: Report; struck: string[] }> {
  const log = join(folder, `struck-${runs++}`);
  const ended = await runProgram('cuda-faults', [DEVICE], {
    env: { ...env, LOWRANK_CUDA_FAULT: fault, LOWRANK_CUDA_FAULT_LOG: log },
    timeout: 120_000 * TIME_SCALE,
  });
  let struck: string[] = [];
  try {
    struck = readFileSync(log, 'utf8').trim().split('\n');
  } catch {
    // Nothing was failed.
  }
  return { report: reportOf<Report>(ended), struck };
}

/** Checks what holds whatever failed, and says in a word what came of it. */
function judge(name: string, report: Report, allowed: readonly string[]): string {
  const ends = [
    ...Object.entries(report.outcomes).map(([step, { outcome }]) => ({ step, outcome })),
    { step: 'synchronize', outcome: report.synchronised },
  ];
  for (const { step, outcome } of ends) {
    expect(['right', ...allowed], `${name}: ${step}`).toContain(outcome);
  }
  for (const { outcome, message } of Object.values(report.outcomes)) {
    if (outcome !== 'right') expect(message?.length, name).toBeGreaterThan(20);
  }
  expect({ bytes: report.liveBytes, tensors: report.liveTensors }, `${name}: left`).toEqual({
    bytes: 0,
    tensors: 0,
  });
  expect(report.cpu, `${name}: the CPU device`).toBe(11);
  const codes = new Set(ends.map(({ outcome }) => outcome).filter((code) => code !== 'right'));
  if (codes.size === 0) return 'absorbed';
  return [...codes].map((code) => code.replace('ERR_', '')).join('+');
}

/** Two at a time: a process waits for the disk and its own end more than it computes. */
async function inParallel<T>(items: readonly T[], body: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const worker = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await body(item);
  };
  await Promise.all([worker(), worker()]);
}

/** `count` of the items, beginning with the one whose turn it is. */
function inTurns<T>(items: readonly T[], turn: number, count: number): T[] {
  return Array.from({ length: count }, (_, i) => items[(turn + i) % items.length] as T);
}

describe.skipIf(row?.available !== true)('a failing driver', () => {
  it('without a fault every step is right', async () => {
    const { report, struck } = await withFaults('cuInit:n=1000:code=1');
    expect(struck).toEqual([]);
    expect(judge('no fault', report, [])).toBe('absorbed');
  });

  describe('every call, the first and the second time', () => {
    const table = new Map<string, string[]>();
    const codes = Object.entries(CODES);
    /** Of the codes beside `out of memory`. */
    const turns = codes.length - 1;

    it.each([...CALLS.entries()])('%i %s', { timeout: 300_000 * TIME_SCALE }, async (i, call) => {
      // A fault of a launch names the op that ran, so that call fails by all.
      const others =
        call === 'cuLaunchKernelEx'
          ? codes.slice(1)
          : inTurns(codes.slice(1), i, repetitions(1, turns));
      const { fault: before, env } = REACHED_BY[call] ?? {};
      const words = new Map<string, string>();
      const strike = async (n: number, code: number): Promise<void> => {
        const fault = `${call}:n=${n}:code=${code}`;
        const { report, struck } = await withFaults(
          before === undefined ? fault : `${before},${fault}`,
          env,
        );
        const plain = code === 2 ? ['ERR_OOM'] : ['ERR_COMPUTE', 'ERR_DEVICE'];
        const allowed = before === undefined ? plain : ['ERR_OOM', 'ERR_COMPUTE', 'ERR_DEVICE'];
        const word = judge(fault, report, allowed);
        const reached = struck.includes(call);
        words.set(`${n} ${code}`, reached ? word : 'not called');
        if (reached && code === 700 && call === 'cuLaunchKernelEx') {
          expect(report.available).toBe(false);
          expect(report.reason).toMatch(
            /while it ran (fill|cast|quantize) .*CUDA_ERROR_ILLEGAL_ADDRESS, 700/,
          );
        }
      };
      await inParallel([1, 2], (n) => strike(n, 2));
      // What is not called, or not twice, is not with another code either.
      const called = [1, 2].filter((n) => words.get(`${n} 2`) !== 'not called');
      await inParallel(
        others.flatMap(([, code]) => called.map((n) => [n, code] as const)),
        ([n, code]) => strike(n, code),
      );
      table.set(
        call,
        called.length === 0
          ? ['not called']
          : codes.map(([, code]) =>
              called.map((n) => words.get(`${n} ${code}`) ?? '-').join(' / '),
            ),
      );
    });

    afterAll(() => {
      const width = Math.max(...CALLS.map((call) => call.length));
      const line = (name: string, cells: readonly string[]) =>
        `${name.padEnd(width)}  ${cells.map((cell) => cell.padEnd(19)).join(' ')}`.trimEnd();
      const rows = [...table].map(([call, cells]) => line(call, cells));
      console.log([line('first / second time', Object.keys(CODES)), ...rows].join('\n'));
    });

    it('reaches most of them', () => {
      const reached = [...table.values()].filter((cells) => cells[0] !== 'not called');
      expect(reached.length).toBeGreaterThan(35);
    });
  });

  const fatal = [700, 702, 710, 714, 715, 716, 717, 718, 719];
  it.each([...fatal.entries()])(
    '%i: error %i is the end of the device and of nothing else',
    async (i, code) => {
      const calls = ['cuLaunchKernelEx', 'cuEventQuery', 'cuMemcpyHtoDAsync_v2'];
      for (const call of inTurns(calls, i, repetitions(1, calls.length))) {
        const { report, struck } = await withFaults(`${call}:n=2:code=${code}:fatal`);
        expect(struck).toContain(call);
        expect(judge(`${call} ${code}`, report, ['ERR_COMPUTE'])).toBe('COMPUTE');
        expect(report.available).toBe(false);
        expect(report.reason).toContain(`${code})`);
      }
    },
    120_000 * TIME_SCALE,
  );

  it('a fault that is not understood is refused', async () => {
    for (const fault of ['cuNothing', 'cuInit:n=0', 'cuInit:often']) {
      const { report } = await withFaults(fault);
      expect(judge(fault, report, ['ERR_DEVICE'])).toBe('DEVICE');
      expect(report.outcomes.copy?.message).toContain('LOWRANK_CUDA_FAULT');
    }
  });
});
