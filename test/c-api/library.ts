/** liblowrank.so.1 as the tests build it, and programs in C against it. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { buildFolder, outputFolder, root, run, toolEnvironment } from '../emulator/build-folder.js';

export const includeFolder = path.join(root, 'native', 'c_api', 'include');
export const libraryFolder = outputFolder();
export const library = path.join(libraryFolder, 'liblowrank.so.1');

export const has = (tool: string, version = '--version'): boolean =>
  spawnSync(tool, [version], { env: toolEnvironment() }).status === 0;

/** Linux with a CMake build and a C compiler; else says why not. */
export const cRuns = process.platform === 'linux' && buildFolder() !== undefined && has('gcc');
if (!cRuns) console.warn('not run: the C interface is tested on Linux, with gcc and a CMake build');

/** Is the library one of a sanitizer's build? Then programs get its runtime from LD_PRELOAD. */
export const sanitized = /^LOWRANK_SANITIZE:STRING=./m.test(
  cRuns ? fs.readFileSync(path.join(buildFolder() as string, 'CMakeCache.txt'), 'utf8') : '',
);
const sanitizerEnvironment = {
  LOWRANK_SANITIZED: '1',
  TSAN_OPTIONS: `${process.env.TSAN_OPTIONS ?? ''}:die_after_fork=0`,
};

/** A folder that is removed when the process ends. */
export function temporaryFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowrank-c-'));
  process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Compiles C sources, which every warning stops, and returns the program. */
export async function compile(program: string, sources: readonly string[]): Promise<string> {
  const flags = ['-std=c11', '-O1', '-Wall', '-Wextra', '-Werror', '-pedantic', '-pthread'];
  const link = [`-L${libraryFolder}`, `-Wl,-rpath,${libraryFolder}`, '-llowrank', '-lm', '-ldl'];
  await run('gcc', [...flags, `-I${includeFolder}`, ...sources, '-o', program, ...link], {
    env: toolEnvironment(),
  });
  return program;
}

/** The text of all headers, without comments. */
export function headers(): string {
  const folder = path.join(includeFolder, 'lowrank');
  const files = fs
    .readdirSync(folder)
    .sort()
    .map((file) => path.join(folder, file));
  return files
    .map((file) => fs.readFileSync(file, 'utf8'))
    .join('\n')
    .replace(/\/\*[\s\S]*?\*\//g, '');
}

/** Standard output of a program; it fails with what the program said. */
export async function output(
  program: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<string> {
  const done = await run(program, [...args], {
    env: { ...process.env, ...(sanitized && sanitizerEnvironment), ...env },
    maxBuffer: 1 << 26,
  }).catch((error) => error);
  return `${done.stdout}${done.stderr}`.split('\n').slice(0, 30).join('\n');
}
