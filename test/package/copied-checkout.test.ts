/**
 * A checkout that was copied with its build folder, which names the folder that it was made in: CMake would build
 * there. And the library of the emulator, which is looked for beside the addon.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';

const root = resolve(import.meta.dirname, '..', '..');
const hasCMake = spawnSync('cmake', ['--version']).status === 0;
if (!hasCMake) console.warn('not run: cmake is not installed');

let folder: string;
beforeAll(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'lowrank-copied-'));
});
afterAll(() => fs.rmSync(folder, { recursive: true }));

const run = (script: string, args: readonly string[], env: NodeJS.ProcessEnv = {}) => {
  const own = { ...process.env, LOWRANK_BINDING: '', ...env };
  return spawnSync(process.execPath, [script, ...args], { encoding: 'utf8', env: own });
};

describe.skipIf(!hasCMake)('a build in a copied checkout', () => {
  /** As little of a checkout as both commands need: its addon is a copy of a text. */
  function makeCheckout(at: string): void {
    const project = `cmake_minimum_required(VERSION 3.21)
project(copied NONE)
add_custom_target(addon ALL COMMAND \${CMAKE_COMMAND} -E copy \${CMAKE_SOURCE_DIR}/native/addon.txt
  \${CMAKE_BINARY_DIR}/Release/lowrank.node)
`;
    fs.mkdirSync(join(at, 'native'), { recursive: true });
    fs.writeFileSync(join(at, 'CMakeLists.txt'), project);
    fs.writeFileSync(join(at, 'native', 'addon.txt'), 'of the first');
    fs.writeFileSync(join(at, 'native', 'sources.json'), '{}');
    for (const file of ['package.json', 'native/build.mjs']) {
      fs.copyFileSync(join(root, file), join(at, file));
    }
    fs.cpSync(join(root, 'dist'), join(at, 'dist'), { recursive: true });
    fs.symlinkSync(join(root, 'node_modules'), join(at, 'node_modules'));
  }
  const addonOf = (checkout: string) =>
    fs.readFileSync(join(checkout, 'build', 'Release', 'lowrank.node'), 'utf8');

  it.each([
    ['npm run build:native', 'native/build.mjs', ['build']],
    ['lowrank build', 'dist/cli/main.js', ['build', '--with', 'cmake']],
  ])('by %s builds there, not where it was copied from', (name, script, args) => {
    const [first, second] = [`${name} 1`, `${name} 2`].map((each) => join(folder, each));
    makeCheckout(first as string);
    const build = (checkout = '') => run(join(checkout, script), args);
    expect(build(first).status).toBe(0);
    fs.cpSync(first as string, second as string, { recursive: true, verbatimSymlinks: true });
    fs.writeFileSync(join(second as string, 'native', 'addon.txt'), 'of the second');

    const { status, stderr } = build(second);
    expect(status, stderr).toBe(0);
    expect([first, second].map((each) => addonOf(each as string))).toEqual([
      'of the first',
      'of the second',
    ]);
    expect(stderr).toContain(`was configured for ${first}, not for ${second}: it is configured`);
    // Once: the folder is its own from then on.
    const again = build(second);
    expect(again.status, again.stderr).toBe(0);
    expect(again.stderr).not.toContain('configured');
  });
});

describe('lowrank emulate', () => {
  const emulate = ['emulate', 'loraForward', '--m', '1', '--n', '32', '--k', '32'];

  it('builds nothing in a build folder that was copied', () => {
    const build = join(folder, 'build');
    fs.mkdirSync(join(build, 'Release'), { recursive: true });
    fs.copyFileSync(bindingPath(), join(build, 'Release', 'lowrank.node'));
    const cache = join(build, 'CMakeCache.txt');
    fs.writeFileSync(cache, `CMAKE_CACHEFILE_DIR:INTERNAL=${folder}/elsewhere/build\n`);
    const env = { LOWRANK_BINDING: join(build, 'Release', 'lowrank.node') };
    const { status, stderr } = run(join(root, 'dist', 'cli', 'main.js'), emulate, env);
    expect(stderr).toMatch(
      /build" must be configured here, got a build folder of ".*elsewhere.build"\. .*lowrank build/,
    );
    expect(status).toBe(8);
  });

  it('looks beside the file of an addon that a package has', () => {
    const checkout = join(folder, 'installed');
    fs.cpSync(join(root, 'dist'), join(checkout, 'dist'), { recursive: true });
    fs.copyFileSync(join(root, 'package.json'), join(checkout, 'package.json'));
    const script = join(checkout, 'dist', 'cli', 'main.js');
    const { stderr: missing } = run(script, ['info']);
    const platform = /@lowrank\/([\w-]+)/.exec(missing)?.[1] ?? 'none';
    const installed = join(checkout, 'node_modules', '@lowrank', platform);
    fs.mkdirSync(installed, { recursive: true });
    fs.writeFileSync(join(installed, 'package.json'), '{"main":"lowrank.node"}');
    fs.copyFileSync(bindingPath(), join(installed, 'lowrank.node'));
    const { status, stderr } = run(script, emulate);
    expect(stderr).toContain(join(installed, 'lowrank-emulator-check.so'));
    expect(status).toBe(8);
  });
});
