/**
 * Beside a CUDA driver that hangs or aborts a program that computes on the CPU does not notice: the driver is opened
 * only where a GPU is meant, and not waited for without end.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Ended, reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

let folder = '';
let driver = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lowrank-driver-'));
  driver = join(folder, 'libcuda.so.1');
  const source = join(import.meta.dirname, 'broken_driver.c');
  execFileSync('gcc', ['-shared', '-fPIC', source, '-o', driver]);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Told {
  refused: string;
  seconds: number;
  standard?: string;
  cuda?: { available: boolean; reason: string };
}

let runs = 0;

/** A program's end, and what the driver was asked meanwhile. */
async function beside(
  kind: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<{ ended: Ended; asked: string }> {
  const log = join(folder, `log-${runs++}`);
  const ended = await runProgram('broken-driver', args, {
    env: { LOWRANK_CUDA_LIBRARY: driver, FAKE_CUDA: kind, FAKE_CUDA_LOG: log, ...env },
  });
  return { ended, asked: existsSync(log) ? readFileSync(log, 'utf8') : '' };
}

describe.each(['hang', 'abort', 'hang-load', 'abort-load'])('a driver that does: %s', (kind) => {
  const limit = { timeout: 60_000 * TIME_SCALE };

  it('is not opened by a program that names the CPU', limit, async () => {
    const { ended, asked } = await beside(kind, ['named', 'cpu', 'reference']);
    expect(reportOf<Told>(ended).refused).toMatch(
      /^ERR_DEVICE .*must be one of cpu, reference, cuda, cuda-emulated, got "cpuu"/,
    );
    expect(asked).toBe('');
  });

  it.each(['cpu', 'reference'])('nor with LOWRANK_DEVICE=%s', limit, async (device) => {
    const { ended, asked } = await beside(kind, ['default'], { LOWRANK_DEVICE: device });
    expect(reportOf<Told>(ended).standard).toBe(device);
    expect(asked).toBe('');
  });
});

describe('a driver that hangs', () => {
  it('is given up where the default is looked for', { timeout: 60_000 * TIME_SCALE }, async () => {
    const env = { LOWRANK_CUDA_TIMEOUT: '1' };
    const { ended, asked } = await beside('hang', ['default', 'list'], env);
    const told = reportOf<Told>(ended);
    expect(told.standard).toBe('cpu');
    expect(told.cuda).toMatchObject({ available: false });
    expect(told.cuda?.reason).toMatch(/the CUDA driver did not start within 1 s/);
    expect(told.seconds).toBeLessThan(20 * TIME_SCALE);
    expect(asked).toBe('loaded\ncuInit\n');
  });
});

describe('a driver that fails', () => {
  it('leaves the default to the CPU', async () => {
    const told = reportOf<Told>((await beside('fail', ['default', 'list'])).ended);
    expect(told.standard).toBe('cpu');
    expect(told.cuda?.reason).toMatch(/did not start: unknown error/);
  });

  it.each(['0', 'abc', '1.5', '-1', '1234567'])('is not waited for %s seconds', async (seconds) => {
    const env = { LOWRANK_CUDA_TIMEOUT: seconds };
    const told = reportOf<Told>((await beside('fail', ['default', 'list'], env)).ended);
    expect(told.cuda?.reason).toContain(`whole seconds, 1 to 999999, got "${seconds}"`);
  });
});
