/** Programs that the harness compiles: made once, and nothing of them stays. */

import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { compileProgram, removePrograms } from '../../lib/bench/foreign.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const folder = temporaryFolder();
const before = process.env.TMPDIR;

beforeAll(() => {
  requireBuilt();
  process.env.TMPDIR = folder;
});

afterAll(() => {
  removePrograms();
  if (before === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = before;
});

describe('compiled programs', () => {
  it('are made once, and gone when they are no longer needed', () => {
    const first = compileProgram('roofline.cpp');
    if ('missing' in first) return console.log(`not checked: ${first.missing}`);
    expect(compileProgram('roofline.cpp')).toBe(first);
    expect(path.dirname(path.dirname(first.program))).toBe(folder);
    removePrograms();
    expect(readdirSync(folder)).toEqual([]);
    const again = compileProgram('roofline.cpp') as { program: string };
    expect(existsSync(again.program)).toBe(true);
    removePrograms();
    expect(readdirSync(folder)).toEqual([]);
  });

  it.each(['emulate matmul --m 1 --n 16 --k 16', 'bench --shape 1x16x16 --peers none'])(
    'where nothing can be made, TMPDIR is named: %s',
    async (command) => {
      process.env.TMPDIR = path.join(folder, 'none');
      const { code, stderr, stdout } = await run(command.split(' '));
      process.env.TMPDIR = folder;
      expect({ code, stdout }).toEqual({ code: 3, stdout: '' });
      expect(stderr).toMatch(/: TMPDIR must be a writable folder, got ".*none"/);
      expect(stderr).not.toContain('a bug');
    },
  );
});
