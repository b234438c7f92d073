/**
 * The emulator's own tests: planted bugs are found in every schedule (emulator_selftest.cpp), warp
 * instructions, counters and memory do what they are said to (emulator_instructions_check.cpp,
 * emulator_runtime_check.cpp).
 * Built here by the host compiler, without the addon.
 */
import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');
const compiler = process.env.CXX ?? 'g++';

const FLAGS = [
  '-std=c++17',
  `-I${root}`,
  '-DLOWRANK_EMULATE',
  ...(process.arch === 'x64' ? ['-march=x86-64-v3'] : []),
  '-fno-strict-aliasing',
  '-ffp-contract=off',
  '-g1',
];
/** What makes the compiler report every access, whole; see cuda/emulator/run_plan.h. */
const HOOKS = [
  '-O2',
  '-fsanitize=thread',
  '--param=tsan-instrument-func-entry-exit=0',
  '--param=tsan-distinguish-volatile=1',
  '-fno-tree-sra',
  '-fno-ipa-sra',
  '-fno-tree-fre',
  '-fno-tree-pre',
  '-fno-tree-vectorize',
  '-fno-tree-slp-vectorize',
  '-fno-crossjumping',
  '-fno-tree-tail-merge',
];

const folder = mkdtempSync(join(tmpdir(), 'lowrank-emulator-'));
const object = (source: string) => join(folder, `${basename(source)}.o`);

/** Runs the jobs, two at a time. */
async function inPairs(jobs: ReadonlyArray<() => Promise<unknown>>): Promise<void> {
  const queue = [...jobs];
  const worker = async () => {
    for (let job = queue.shift(); job !== undefined; job = queue.shift()) await job();
  };
  await Promise.all([worker(), worker()]);
}

async function program(name: string, sources: readonly string[]): Promise<string> {
  const path = join(folder, name);
  const runtime = readdirSync(folder).filter((file) => /^runtime-.*\.o$/.test(file));
  const objects = [...sources.map(object), ...runtime.map((file) => join(folder, file))];
  await run(compiler, [...objects, '-o', path, '-pthread', '-ldl']);
  const { stdout } = await run(path, [], { timeout: 120_000 }).catch((error) => error);
  return String(stdout).trim();
}

const linux = process.platform === 'linux';
if (!linux) console.warn('not run: the emulator is for Linux');

describe.runIf(linux)('the emulator', () => {
  beforeAll(async () => {
    const files = readdirSync(join(root, 'cuda/emulator'), { recursive: true }) as string[];
    const runtime = files.filter((f) => f.endsWith('.cpp') && !/^(driver|hopper)\//.test(f));
    const compile = (flags: string[], source: string, out: string) => () =>
      run(compiler, [...FLAGS, ...flags, '-c', join(root, source), '-o', out]);
    await inPairs([
      ...runtime.map((file) =>
        compile(['-O2'], `cuda/emulator/${file}`, join(folder, `runtime-${basename(file)}.o`)),
      ),
      ...[
        'test/native/emulator_selftest.cpp',
        'test/native/emulator_instructions_check.cpp',
        'test/native/emulator_runtime_check.cpp',
      ].map((source) => compile(['-O1'], source, object(source))),
      compile(
        [...HOOKS, '-x', 'c++'],
        'test/native/emulator_cases.cu',
        object('emulator_cases.cu'),
      ),
    ]);
  }, 600_000);

  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('finds every planted bug in every schedule, and nothing in correct kernels', async () => {
    const output = await program('selftest', ['emulator_selftest.cpp', 'emulator_cases.cu']);
    expect(output).toMatch(/^\d+ cases in \d+ schedules, 0 runs failed$/);
  }, 180_000);

  it('computes what warp instructions are defined to', async () => {
    const output = await program('instructions', ['emulator_instructions_check.cpp']);
    expect(output).toBe('0 wrong');
  }, 180_000);

  it('counts what accesses cost, and leaves its host as it was', async () => {
    const output = await program('runtime', ['emulator_runtime_check.cpp']);
    expect(output).toBe('0 wrong');
  }, 180_000);
});
