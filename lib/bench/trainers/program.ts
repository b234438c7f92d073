/** Trainers whose steps another program runs: it prints one JSON object as its last line. */

import { spawn } from 'node:child_process';
import { LowrankError } from '../../core/errors.js';
import { printableText } from '../../core/printable.js';

export interface TrainerProgram {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** Enough for the losses of a run. */
const kMostText = 1 << 24;

/**
 * Runs a program and returns what it prints last.
 * @throws LowrankError `ERR_COMPUTE` with the last line of its stderr
 */
export async function runProgram({ command, args, env }: TrainerProgram): Promise<unknown> {
  const child = spawn(command, args, {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const end = () => child.kill();
  process.once('exit', end);
  const texts = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      texts[name] = (texts[name] + text).slice(-kMostText);
    });
  }
  const status = await new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (code, signal) => resolve(code ?? signal ?? 'ended'));
  });
  process.removeListener('exit', end);
  const last = (text: string) => text.trim().split('\n').pop() ?? '';
  if (status !== 0) {
    const reason = printableText(last(texts.stderr));
    throw new LowrankError('ERR_COMPUTE', `${command} ends with ${status}: ${reason}`);
  }
  try {
    return JSON.parse(last(texts.stdout)) as unknown;
  } catch {
    const text = printableText(last(texts.stdout));
    throw new LowrankError('ERR_COMPUTE', `${command} must print JSON, got "${text}"`);
  }
}
