/** Targets of the CMake build that only tests need. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

export const root = path.join(import.meta.dirname, '..', '..');
export const run = promisify(execFile);

/** The folder of the addon: build/Release, or where LOWRANK_BINDING lies. */
export function outputFolder(): string {
  const override = process.env.LOWRANK_BINDING;
  return override === undefined || override === ''
    ? path.join(root, 'build', 'Release')
    : path.dirname(path.resolve(override));
}

/** For compilers and other tools: the runtime of a sanitizer is only for the programs that they make. */
export function toolEnvironment(): NodeJS.ProcessEnv {
  const { LD_PRELOAD: _, ...env } = process.env;
  return env;
}

/** The folder that CMake configured, or undefined: the addon was built by node-gyp. */
export function buildFolder(): string | undefined {
  for (let folder = outputFolder(), depth = 0; depth < 3; depth++, folder = path.dirname(folder)) {
    if (fs.existsSync(path.join(folder, 'CMakeCache.txt'))) return folder;
  }
  return undefined;
}

const isPlatform = process.platform === 'linux' && process.arch === 'x64';
/** Can the emulator be built and run here? */
export const emulatorRuns = isPlatform && buildFolder() !== undefined;
if (!emulatorRuns) {
  console.warn(
    'not run: the emulator is for x86-64 Linux, and needs a CMake build (npm run build)',
  );
}

/** Is the CMake build one with nvcc? */
export function hasNvcc(): boolean {
  const cache = path.join(buildFolder() ?? '', 'CMakeCache.txt');
  const found = fs.existsSync(cache) ? fs.readFileSync(cache, 'utf8') : '';
  return /^LOWRANK_NVCC:FILEPATH=(?!.*NOTFOUND)./m.test(found);
}

/**
 * Builds targets; they are in {@link outputFolder} then. One build at a time: files of tests run beside each
 * other, and two builds in one folder, of what both lack, write over each other.
 */
export async function buildTargets(...targets: string[]): Promise<void> {
  const folder = buildFolder();
  if (folder === undefined) throw new Error('there is no CMake build: npm run build:native');
  const lock = path.join(folder, 'build.lock');
  await run('flock', [lock, 'cmake', '--build', folder, '--target', ...targets, '-j', '2'], {
    maxBuffer: 1 << 28,
    env: toolEnvironment(),
  });
}
