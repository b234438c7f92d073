/**
 * The library of the emulator for `lowrank emulate`. It is built if it is missing or older than the
 * kernels.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileError, requireRegular } from '../../checkpoint/files/file-access.js';
import { bindingPath } from '../../core/binding.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { Progress } from '../../report/terminal.js';
import { buildEnvironment } from '../build/build-environment.js';
import { withBuildLock } from '../build/build-lock.js';

/** Kinds of library, by how their kernels were made. */
export const libraryKinds = ['check', 'source', 'ptx'] as const;
export type LibraryKind = (typeof libraryKinds)[number];

const kTargets: Readonly<Record<LibraryKind, string>> = {
  check: 'emulator_check',
  source: 'lowrank_emulator',
  ptx: 'emulator_ptx',
};

function fileOf(kind: LibraryKind | 'own'): string {
  return kind === 'source' ? 'lowrank-emulator.so' : `lowrank-emulator-${kind}.so`;
}

/** The addon's file. An addon from a package is loaded by the package name. */
function bindingFile(): string {
  const loaded = bindingPath();
  return path.isAbsolute(loaded) ? loaded : createRequire(import.meta.url).resolve(loaded);
}

/**
 * The folder in which CMake built the addon; undefined if the addon came with a package.
 * @throws ERR_NO_BINDING if the folder was copied: CMake would build in the original place
 */
function buildFolder(): string | undefined {
  let folder = path.dirname(bindingFile());
  for (let depth = 0; depth < 3; depth++) {
    const cache = path.join(folder, 'CMakeCache.txt');
    if (existsSync(cache)) {
      const made = /^CMAKE_CACHEFILE_DIR:INTERNAL=(.*)$/m.exec(readFileSync(cache, 'utf8'))?.[1];
      if (isSameFolder(made ?? folder, folder)) return folder;
      const expected = `${printable(folder)} must be configured here, got a build folder of ${printable(made ?? '')}`;
      const advice = 'Build the addon here with `npx lowrank build --with cmake`';
      throw new LowrankError('ERR_NO_BINDING', `emulate: ${expected}. ${advice}`);
    }
    folder = path.dirname(folder);
  }
  return undefined;
}

function isSameFolder(a: string, b: string): boolean {
  const [first, second] = [a, b].map((each) => statSync(each, { throwIfNoEntry: false }));
  return first !== undefined && first.dev === second?.dev && first.ino === second.ino;
}

/**
 * Runs CMake. Its output is shown only if it fails.
 * @param code for that failure: a user's file that does not compile is not an error of the build
 */
function cmake(
  args: readonly string[],
  failure: string,
  code: 'ERR_NO_BINDING' | 'ERR_FILE' = 'ERR_NO_BINDING',
): void {
  const done = spawnSync('cmake', args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: buildEnvironment(),
  });
  if (done.error === undefined && done.status === 0) return;
  if (done.error !== undefined) {
    const text = `emulate: ${failure}: cmake must be installed (${done.error.message})`;
    throw new LowrankError('ERR_NO_BINDING', text);
  }
  const text = firstErrors(`${done.stdout}${done.stderr}`);
  throw new LowrankError(code, `emulate: ${failure} (cmake ${args.join(' ')}):\n${text}`);
}

const kMostOutput = 4000;

/** The part of a long output from the first error on, because later errors follow from it; otherwise its end. */
function firstErrors(output: string): string {
  if (output.length <= kMostOutput) return output;
  const at = output.search(/^.*error: /m);
  return at < 0 ? output.slice(-kMostOutput) : output.slice(at, at + kMostOutput);
}

/** {@link withBuildLock} that tells the user about a wait. */
function building<T>(folder: string, progress: Progress, work: () => T): Promise<T> {
  return withBuildLock(folder, () => progress.line(`waiting for another build in ${folder}`), work);
}

/** The library of this kind, rebuilt if its sources are available and newer. */
export async function emulatorLibrary(kind: LibraryKind, progress: Progress): Promise<string> {
  const library = path.join(path.dirname(bindingFile()), fileOf(kind));
  const build = buildFolder();
  const target = kTargets[kind];
  if (build !== undefined) {
    await building(build, progress, () => {
      if (!existsSync(library)) {
        progress.line(`building ${fileOf(kind)} (once, a minute or two)`);
      }
      cmake(['--build', build, '--target', target], `${fileOf(kind)} could not be built`);
    });
  }
  if (!existsSync(library)) {
    throw new LowrankError(
      'ERR_NO_BINDING',
      `emulate: ${library} is missing. Build the addon here with \`npx lowrank build --with cmake\`` +
        `, then \`cmake --build build --target ${target}\``,
    );
  }
  return library;
}

function requireFile(source: string): void {
  try {
    requireRegular('emulate', source, statSync(source));
  } catch (error) {
    throw fileError('emulate', source, error);
  }
}

/**
 * A library with one kernel file of the user, as bytes, because the next one is built in its place; and the program
 * that runs a kernel in it.
 * @throws ERR_FILE_NOT_FOUND · ERR_PATH · ERR_FILE if it does not compile · ERR_NO_BINDING
 */
export async function ownKernelLibrary(
  source: string,
  progress: Progress,
): Promise<{ library: Uint8Array; runner: string }> {
  requireFile(source);
  const build = buildFolder();
  if (build === undefined) {
    throw new LowrankError(
      'ERR_NO_BINDING',
      'emulate: a kernel of your own is compiled beside the addon, which must have been built here: ' +
        '`npx lowrank build --with cmake`',
    );
  }
  const folder = path.dirname(bindingFile());
  const library = await building(build, progress, () => {
    progress.line(`compiling ${source}`);
    const tools = 'the objects that your kernel is linked with could not be built';
    cmake([`-DLOWRANK_OWN_KERNEL=${path.resolve(source)}`, build], tools);
    cmake(['--build', build, '--target', 'lowrank_emulator_runtime', 'emulator_run'], tools);
    const failure = `${printable(source)} does not compile`;
    cmake(['--build', build, '--target', 'emulator_own'], failure, 'ERR_FILE');
    return readFileSync(path.join(folder, fileOf('own')));
  });
  return { library, runner: path.join(folder, 'lowrank-emulator-run') };
}
