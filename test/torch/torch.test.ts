/** The package for PyTorch, by programs in Python, where a Python has torch. */
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { findPython } from '../../lib/bench/peers/torch.js';
import { cRuns, library, sanitized } from '../c-api/library.js';
import { buildTargets, root, run } from '../emulator/build-folder.js';
import { TIME_SCALE } from '../reliability/program.js';

const python = cRuns && !sanitized ? findPython('torch', 'numpy') : undefined;
if (sanitized) console.warn('not run: Python with torch is not started under a sanitizer');
else if (cRuns && python === undefined) {
  console.warn(
    'not run: the package for PyTorch needs torch (apt install python3-torch python3-numpy)',
  );
}

const timeout = 300_000 * TIME_SCALE;
/** Settings of the user of the machine, such as threads, stay out. */
const env = { ...process.env, LOWRANK_LIBRARY: library, OMP_WAIT_POLICY: 'passive' };

/** What a program printed; it fails with the end of that. */
async function output(file: string, ...args: string[]): Promise<{ out: string; err: string }> {
  const command = python?.command as string;
  const done = await run(command, [path.join(root, file), ...args], { env }).catch(
    (error) => error,
  );
  if (done.code) throw new Error(`${file}:\n${done.stdout}${done.stderr}`.slice(-6000));
  return { out: done.stdout, err: done.stderr };
}

describe.runIf(python !== undefined)('lowrank_torch', () => {
  beforeAll(() => buildTargets('lowrank_c'), 1_200_000);

  const programs = fs
    .readdirSync(import.meta.dirname)
    .filter((file) => file.endsWith('.py') && file !== 'shapes.py')
    .sort();

  it.each(programs)('%s', { timeout }, async (program) => {
    const { err } = await output(path.join('test', 'torch', program));
    const [, count] = /^Ran (\d+) tests/m.exec(err) ?? [];
    expect(Number(count)).toBeGreaterThan(3);
    expect(err).toMatch(/^OK$/m);
  });
});
