/** Running the built command as a user does. */

import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
export const commandFile = path.join(root, 'dist', 'cli', 'main.js');

export interface Finished {
  /** Exit code, or the signal that ended the process. */
  readonly code: number | NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Running {
  readonly child: ChildProcess;
  readonly finished: Promise<Finished>;
  /** Resolves once stderr has this text; rejects if the process ends without it. */
  until(text: string): Promise<void>;
}

/** Fails where the command is missing or older than its sources: the tests would check the past. */
export function requireBuilt(): void {
  if (!fs.existsSync(commandFile)) throw new Error('dist/ is missing: npm run build');
  const built = fs.statSync(commandFile).mtimeMs;
  const lib = path.join(root, 'lib');
  for (const name of fs.readdirSync(lib, { recursive: true, encoding: 'utf8' })) {
    if (name.endsWith('.ts') && fs.statSync(path.join(lib, name)).mtimeMs > built) {
      throw new Error(`lib/${name} is newer than dist/: npm run build`);
    }
  }
}

/** Starts the command; `wrap` puts a shell script around it, in which "$@" is the command. */
export function start(
  args: readonly string[],
  options: { readonly cwd?: string; readonly wrap?: string } = {},
): Running {
  const command = [process.execPath, commandFile, ...args];
  const [file, ...rest] =
    options.wrap === undefined ? command : ['bash', '-c', options.wrap, 'bash', ...command];
  const child = spawn(file as string, rest, { cwd: options.cwd ?? root });
  let [stdout, stderr] = ['', ''];
  const waiting = new Set<() => void>();
  const output = (chunk: Buffer) => {
    stderr += chunk.toString();
    for (const check of waiting) check();
  };
  child.stdout.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr.on('data', output);
  const finished = new Promise<Finished>((resolve) => {
    child.on('close', (code, signal) => resolve({ code: signal ?? code, stdout, stderr }));
  });
  const until = (text: string) =>
    new Promise<void>((resolve, reject) => {
      const check = () => {
        if (!stderr.includes(text)) return;
        waiting.delete(check);
        resolve();
      };
      waiting.add(check);
      finished.then(() => reject(new Error(`ended without ${text}:\n${stderr}`)));
      check();
    });
  return { child, finished, until };
}

/** Runs the command to its end. */
export function run(
  args: readonly string[],
  options: { readonly cwd?: string; readonly wrap?: string } = {},
): Promise<Finished> {
  return start(args, options).finished;
}
