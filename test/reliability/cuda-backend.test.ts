/**
 * The CUDA backend below JavaScript, by a program over the emulator (test/native): streams and
 * pointers of the caller's, graph capture, memory across streams, cancellation. Once with streams
 * that run at once, and once with streams that hold everything back until somebody waits.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';
import { TIME_SCALE } from './program.js';

const beside = (file: string) => join(dirname(bindingPath()), file);
const program = beside('cuda_backend_check');
const declarations = beside('cuda_driver_check');
for (const file of [program, declarations]) {
  if (!existsSync(file)) console.warn(`not run: no file ${file} (npm run build:emulator)`);
}

function run(file: string, args: readonly string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(file, args, {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return { status, text: `${stdout}${stderr}` };
}

describe.skipIf(!existsSync(program))('the backend below JavaScript', () => {
  const libraries = ['lowrank-emulator.so', 'lowrank-emulator-check.so'].filter((file) =>
    existsSync(beside(file)),
  );
  const cases = libraries.flatMap((file) => ['eager', 'late'].map((streams) => [file, streams]));

  it.each(cases)('%s, %s streams', { timeout: 120_000 * TIME_SCALE }, (file, streams) => {
    const env = { LOWRANK_EMULATOR_STREAMS: streams as string };
    const { status, text } = run(program, [beside(file as string)], env);
    expect(text).toContain('the CUDA backend holds');
    expect(text).not.toContain('FAILED');
    expect(status).toBe(0);
  });

  it('is checked by a program that can fail', { timeout: 120_000 * TIME_SCALE }, () => {
    const env = { LOWRANK_CUDA_FAULT: 'cuStreamWaitEvent:n=3:code=999' };
    const { status, text } = run(program, [beside(libraries[0] as string)], env);
    expect(text).toContain('FAILED');
    expect(status).toBe(1);
  });
});

describe.skipIf(!existsSync(declarations))('native/cuda/driver/driver.h', () => {
  it('was compiled against cuda.h', () => {
    expect(run(declarations, [])).toMatchObject({ status: 0 });
  });
});
