/**
 * `lowrank build` builds the native addon on this machine: with CMake through cmake-js if CMake is
 * installed, otherwise with node-gyp. Both compile the same list of sources.
 */

import { type SpawnOptions, spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { LowrankError } from '../../core/errors.js';
import { packageFolder } from '../../environment/package-folder.js';
import { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { buildEnvironment } from './build-environment.js';

const kHelp = `Builds the native addon here; needs a C++17 compiler, and CMake 3.21 or Python 3.

Usage: lowrank build [options]

  --with TOOL   cmake, gyp or auto (CMake where it is installed)          [auto]
  --c-api       instead of the addon, the library for C beside it (liblowrank.so.1); needs CMake
  --clean       from scratch
  --debug       without optimisation
`;

const kOptions = {
  with: { type: 'string' },
  'c-api': { type: 'boolean' },
  clean: { type: 'boolean' },
  debug: { type: 'boolean' },
} as const;

/** What a build with CMake is asked for, and the file that it makes. */
interface Product {
  readonly file: string;
  readonly options: readonly string[];
}
const kAddon: Product = { file: 'lowrank.node', options: [] };
const kCLibrary: Product = { file: 'liblowrank.so.1', options: ['--target', 'lowrank_c'] };

/** Runs the subcommand. */
export async function buildCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse('build', args, kOptions, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const asked = parsed.choice('with', 'auto', ['auto', 'cmake', 'gyp'] as const);
  const root = packageFolder();
  if (!existsSync(path.join(root, 'native', 'sources.json'))) {
    throw notBuilt(`${root} holds no sources. Install the package that has them`);
  }
  const debug = parsed.flag('debug');
  if (parsed.flag('c-api')) {
    if (asked === 'gyp') throw parsed.refuse('with', 'cmake or auto with --c-api', asked);
    if (parsed.flag('clean')) throw parsed.refuse('clean', 'left out with --c-api', 'true');
    return built('cmake', await withCMake(root, 'build', debug, kCLibrary));
  }
  const tool = asked === 'auto' ? (hasCMake() ? 'cmake' : 'gyp') : asked;
  const verb = parsed.flag('clean') ? 'rebuild' : 'build';
  return built(
    tool,
    tool === 'cmake'
      ? await withCMake(root, verb, debug, kAddon)
      : await withGyp(root, verb, debug),
  );
}

/** Tells where the result is. */
function built(tool: string, file: string): number {
  if (!existsSync(file)) throw notBuilt(`${tool} finished, but ${file} is not there`);
  process.stdout.write(`built ${file}\n`);
  return exitCodes.ok;
}

function hasCMake(): boolean {
  return spawnSync('cmake', ['--version'], { stdio: 'ignore' }).status === 0;
}

async function withCMake(
  root: string,
  verb: string,
  debug: boolean,
  { file, options }: Product,
): Promise<string> {
  if (!hasCMake()) throw notBuilt('cmake is not on the PATH. Install CMake, or use --with gyp');
  toolScript('cmake-js/package.json', 'bin/cmake-js'); // checks that it is installed
  const script = path.join(root, 'native', 'build.mjs');
  const args = [script, verb, ...options, ...(debug ? ['--debug'] : [])];
  await run(process.execPath, args, { cwd: root });
  return path.join(root, 'build', debug ? 'Debug' : 'Release', file);
}

async function withGyp(root: string, verb: string, debug: boolean): Promise<string> {
  const folder = path.join(root, 'native', 'gyp');
  const script = toolScript('node-gyp/package.json', 'bin/node-gyp.js');
  // Headers next to the running Node: without this, node-gyp downloads them and fails offline.
  const prefix = path.dirname(path.dirname(process.execPath));
  const local = existsSync(path.join(prefix, 'include', 'node', 'node.h'));
  const common = [...(local ? [`--nodedir=${prefix}`] : []), ...(debug ? ['--debug'] : [])];
  const steps = verb === 'build' ? [['configure', 'build']] : [['clean'], ['configure', 'build']];
  for (const step of steps) {
    await run(process.execPath, [script, ...step, ...common], { cwd: folder });
  }
  return path.join(folder, 'build', debug ? 'Debug' : 'Release', 'lowrank.node');
}

/** The script of an installed tool. Its package may export only package.json. */
function toolScript(packageJson: string, script: string): string {
  try {
    const manifest = createRequire(import.meta.url).resolve(packageJson);
    return path.join(path.dirname(manifest), script);
  } catch {
    const name = path.dirname(packageJson);
    throw notBuilt(`${name} is not installed. Run: npm install ${name}`);
  }
}

/** Runs a tool with its output on stderr: stdout has only the result. */
function run(command: string, args: readonly string[], options: SpawnOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      ...options,
      env: buildEnvironment(),
      stdio: ['ignore', process.stderr, 'inherit'],
    });
    child.on('error', (error) => reject(notBuilt(error.message)));
    child.on('exit', (code, signal) => {
      if (code === 0) resolve();
      else
        reject(
          notBuilt(`${path.basename(args[0] ?? command)} failed (${signal ?? code}); see above`),
        );
    });
  });
}

function notBuilt(text: string): LowrankError {
  return new LowrankError('ERR_NO_BINDING', `build: ${text}`, { op: 'build' });
}
