/**
 * `npm run gpu:test` over the emulator, at small sizes: its programs run, agree where all is right, and
 * see a planted mistake. What a GPU makes of them, only a GPU can tell.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildTargets, emulatorRuns, outputFolder, root, run } from '../emulator/build-folder.js';

/** A planted run ends with 1; the report is on stdout in any case. */
async function gpuTest(...args: string[]): Promise<string> {
  const program = path.join(root, 'test', 'gpu', 'run.mjs');
  const all = [program, '--device', 'cuda-emulated', '--no-build', ...args];
  const { stdout } = await run(process.execPath, all, {
    env: { ...process.env, LOWRANK_EMULATOR_SM: '90' },
    maxBuffer: 1 << 26,
  }).catch((error) => error);
  return stdout as string;
}

describe.runIf(emulatorRuns)('gpu:test over the emulator', { timeout: 300_000 }, () => {
  beforeAll(() => buildTargets('gpu_self_proof'), 900_000);

  it('instructions and ops pass', async () => {
    const out = await gpuTest('--only', 'instructions,ops');
    expect(out).toMatch(/^ok {3}instructions: 49 checks, 0 failed, 0 skipped/m);
    expect(out).toMatch(/^ok {3}ops: \d\d checks, 0 failed, 0 skipped/m);
  });

  it('every part sees what is planted in it', async () => {
    const out = await gpuTest('--only', 'instructions,ops,bits', '--plant');
    expect(out).toMatch(/^FAIL instructions: 49 checks, 3 failed/m);
    const [, all, failed] = /^FAIL ops: (\d+) checks, (\d+) failed/m.exec(out) ?? [];
    expect(all).toBeDefined();
    expect(failed).toBe(all);
    expect(out).toMatch(/^FAIL bits: \d+ checks, [1-9]\d* failed/m);
  });

  it('says why there is nothing to test, and ends with 2', async () => {
    const program = path.join(outputFolder(), 'gpu_ops_check');
    const ended = await run(program, ['--device', '/nowhere/libcuda.so.1']).catch((error) => error);
    expect(ended.code).toBe(2);
    expect(ended.stderr).toContain('/nowhere/libcuda.so.1');
  });
});

describe('the instruction kernels', () => {
  const text = (...file: string[]) => readFileSync(path.join(root, ...file), 'utf8');

  it.each([
    ['ptx.cuh', 'instruction_kernels_sm80.cu'],
    ['ptx_sm90.cuh', 'instruction_kernels_sm90a.cu'],
  ])('call every wrapper of cuda/%s', (header, kernels) => {
    const names = [...text('cuda', header).matchAll(/LOWRANK_PTX [\w ]+?(\w+)\(/g)].map(
      (match) => match[1] as string,
    );
    expect(new Set(names).size).toBeGreaterThan(15);
    // What lets launches overlap is called by the macros of a kernel.
    const calls = text('test', 'gpu', kernels) + text('cuda', 'gpu.cuh');
    // An address is seen by what is found there.
    const missing = names.filter((name) => !new RegExp(`\\b${name}\\b`).test(calls));
    expect(missing.filter((name) => name !== 'SharedAddress')).toEqual([]);
  });
});
