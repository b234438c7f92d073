/** How many compilers run at a time: the tools that CMake calls would take one, or too many. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildEnvironment } from '../../lib/cli/build/build-environment.js';

const processors = String(availableParallelism());
const root = resolve(import.meta.dirname, '..', '..');
// cmake-js configures first where there is no cache, and the CMake below only says what it was told.
const configured = existsSync(join(root, 'build', 'CMakeCache.txt'));
if (!configured) console.warn('not run: no CMake build (npm run build:native)');

describe.skipIf(!configured)('a build', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-build-'));
    const program = '#!/bin/sh\necho "level $CMAKE_BUILD_PARALLEL_LEVEL of $*" >&2\n';
    writeFileSync(join(folder, 'cmake'), program, { mode: 0o755 });
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const ways = [
    ['npm run build:native', 'native/build.mjs', ['build']],
    ['lowrank build', 'dist/cli/main.js', ['build', '--with', 'cmake']],
  ] as const;
  it.each(ways)('by %s takes every processor, or what the user says', (_, script, args) => {
    const levelOf = (own: NodeJS.ProcessEnv) => {
      const { CMAKE_BUILD_PARALLEL_LEVEL, ...env } = process.env;
      const PATH = `${folder}${delimiter}${env.PATH}`;
      const options = { cwd: root, encoding: 'utf8', env: { ...env, PATH, ...own } } as const;
      const { status, stderr } = spawnSync(process.execPath, [script, ...args], options);
      expect(status, stderr).toBe(0);
      return /^level (\S*) of --build /m.exec(stderr)?.[1];
    };
    expect(levelOf({})).toBe(processors);
    expect(levelOf({ CMAKE_BUILD_PARALLEL_LEVEL: '7' })).toBe('7');
  });
});

describe.skipIf(!configured)('the library for C', () => {
  const build = (...args: string[]) =>
    spawnSync(process.execPath, ['dist/cli/main.js', 'build', '--c-api', ...args], {
      cwd: root,
      encoding: 'utf8',
    });

  it('is built by lowrank build --c-api, which says where it is', { timeout: 1_200_000 }, () => {
    const { status, stdout, stderr } = build();
    expect(status, stderr).toBe(0);
    expect(stdout).toBe(`built ${join(root, 'build', 'Release', 'liblowrank.so.1')}\n`);
  });

  it.each([
    ['--with', 'gyp'],
    ['--clean', ''],
  ])('is not built with %s %s', (option, value) => {
    const { status, stderr } = build(option, ...(value === '' ? [] : [value]));
    expect(status).toBe(2);
    expect(stderr).toMatch(/with --c-api/);
  });
});

it('a build by node-gyp takes as many', () => {
  expect(buildEnvironment()).toMatchObject({ JOBS: process.env.JOBS ?? processors });
});
