/** Programs of the harness in other languages, which the package has as source in `bench/`. */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import path from 'node:path';
import { packageFolder } from '../environment/package-folder.js';
import { makeTemporaryFolder } from '../environment/temporary-folder.js';

export function benchFile(name: string): string {
  return path.join(packageFolder(), 'bench', name);
}

export type Compiled = { readonly program: string } | { readonly missing: string };

const made = new Map<string, Compiled>();
let folder: string | undefined;

/**
 * Compiles a program of `bench/` for this machine, once per run. It is removed after the run.
 * @param flags after the source: libraries to link
 */
export function compileProgram(source: string, flags: readonly string[] = []): Compiled {
  const key = [source, ...flags].join(' ');
  const known = made.get(key);
  if (known !== undefined) return known;
  const result = compile(benchFile(source), `${path.parse(source).name}-${made.size}`, flags);
  made.set(key, result);
  return result;
}

/** Removes the compiled programs: at the end of the process, or earlier if a signal may end it. */
export function removePrograms(): void {
  if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  folder = undefined;
  made.clear();
}

function compile(file: string, name: string, flags: readonly string[]): Compiled {
  if (!existsSync(file)) return { missing: 'its source is not installed' };
  if (folder === undefined) {
    folder = makeTemporaryFolder('bench', 'lowrank-bench-');
    process.once('exit', removePrograms);
  }
  const program = path.join(folder, name);
  const base = ['-O3', '-march=native', '-std=c++17', '-pthread', file, '-o', program];
  const run = spawnSync(process.env.CXX ?? 'c++', [...base, ...flags], { encoding: 'utf8' });
  if (run.error !== undefined) return { missing: 'no C++ compiler' };
  if (run.status === 0) return { program };
  const reason = /(?:fatal )?error: .*|cannot find .*/.exec(run.stderr)?.[0] ?? 'does not compile';
  return { missing: reason.slice(0, 120) };
}
