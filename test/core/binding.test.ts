// Where the addon is looked for, and what is said of each place.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'lowrank-binding-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The error of a program that names this file as the addon. */
function named(path: string): string {
  const program = `require('./dist/index.cjs').devices()`;
  const { stderr } = spawnSync(process.execPath, ['-e', program], {
    encoding: 'utf8',
    env: { ...process.env, LOWRANK_BINDING: path },
  });
  return stderr;
}

it.each([
  ['settings.json', '{"devices": 1}', 'not an addon: its name must end in .node'],
  ['script.js', 'module.exports = {}', 'not an addon: its name must end in .node'],
  ['broken.node', 'no machine code', 'file too short|invalid ELF header'],
])('LOWRANK_BINDING of %s', (name, text, outcome) => {
  const path = join(folder, name);
  writeFileSync(path, text);
  const said = named(path);
  expect(said).toContain('ERR_NO_BINDING');
  expect(said).toMatch(new RegExp(`${name}: .*(${outcome})`));
});

it('a platform package that is not there, is for another C library, or is broken', async () => {
  const { failureOf } = await import('../../lib/core/binding.js');
  const name = '@lowrank/linux-x64-gnu';
  const none = Object.assign(() => undefined, {
    resolve: () => {
      throw new Error('none');
    },
  }) as never;
  const both = Object.assign(() => undefined, { resolve: () => 'there' }) as never;
  const missing = Object.assign(new Error(`Cannot find module '${name}'\nRequire stack:`), {
    code: 'MODULE_NOT_FOUND',
  });
  const failed = (message: string) =>
    Object.assign(new Error(message), { code: 'ERR_DLOPEN_FAILED' });
  expect(failureOf(missing, name, none)).toBe('not installed');
  expect(failureOf(missing, name, both)).toBe(
    'not installed (@lowrank/linux-x64-musl is installed, but for another C library)',
  );
  const libc = "/lib/libc.so.6: version `GLIBC_2.38' not found";
  expect(failureOf(failed(libc), name, none)).toBe(
    `installed, but made for another C library: ${libc}`,
  );
  expect(failureOf(failed('invalid ELF header'), name, none)).toBe(
    'installed, but broken: invalid ELF header',
  );
});
