/**
 * The emulator's library that `lowrank emulate` runs on, built where it is missing or older than the
 * kernels.
 */

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { bindingPath } from '../core/binding.js';
import { LowrankError } from '../core/errors.js';
import type { Progress } from './terminal.js';

/** Kinds of library: how the kernels in it were made. */
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

/** The folder that CMake built the addon in, or undefined: the addon came with a package. */
function buildFolder(): string | undefined {
  let folder = path.dirname(bindingPath());
  for (let depth = 0; depth < 3; depth++) {
    if (existsSync(path.join(folder, 'CMakeCache.txt'))) return folder;
    folder = path.dirname(folder);
  }
  return undefined;
}

/** Runs CMake; its output is shown only where it fails. */
function cmake(args: readonly string[], what: string): void {
  const done = spawnSync('cmake', args, { encoding: 'utf8', maxBuffer: 1 << 28 });
  if (done.error === undefined && done.status === 0) return;
  const text = done.error?.message ?? `${done.stdout}${done.stderr}`;
  throw new LowrankError(
    'ERR_NO_BINDING',
    `emulate: ${what} could not be built (cmake ${args.join(' ')}):\n${text.slice(-4000)}`,
  );
}

/** The library of this kind, up to date with its sources where those are at hand. */
export function emulatorLibrary(kind: LibraryKind, progress: Progress): string {
  const library = path.join(path.dirname(bindingPath()), fileOf(kind));
  const build = buildFolder();
  const target = kTargets[kind];
  if (build !== undefined) {
    if (!existsSync(library)) {
      progress.line(`building ${fileOf(kind)} (once, a minute or two)`);
    }
    cmake(['--build', build, '--target', target], fileOf(kind));
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

/** A library with one kernel file of the user's, and the program that runs a kernel in it. */
export function ownKernelLibrary(
  source: string,
  progress: Progress,
): { library: string; runner: string } {
  const build = buildFolder();
  if (build === undefined) {
    throw new LowrankError(
      'ERR_NO_BINDING',
      'emulate: a kernel of your own is compiled beside the addon, which must have been built here: ' +
        '`npx lowrank build --with cmake`',
    );
  }
  progress.line(`compiling ${source}`);
  cmake([`-DLOWRANK_OWN_KERNEL=${path.resolve(source)}`, build], source);
  cmake(['--build', build, '--target', 'emulator_own', 'emulator_run'], source);
  const folder = path.dirname(bindingPath());
  return {
    library: path.join(folder, fileOf('own')),
    runner: path.join(folder, 'lowrank-emulator-run'),
  };
}
