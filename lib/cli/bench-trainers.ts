/** `lowrank bench --trainer`: trainers that others wrote, without and with this library. */

import { kTrainers } from '../bench/trainers/index.js';
import { runTrainers, trainersText } from '../bench/trainers/run.js';
import { Progress } from '../report/terminal.js';
import type { Arguments } from './command/arguments.js';
import { exitCodes } from './command/exit-codes.js';
import { Interrupts } from './command/interrupt.js';
import { requireOutputFile, writeOutputFile } from './command/output-file.js';

const kNames = kTrainers.map(({ name }) => name);

export const kTrainerNames = kNames.join(', ');

/** Runs the mode. */
export async function benchTrainers(parsed: Arguments, args: readonly string[]): Promise<number> {
  const text = parsed.text('trainer') ?? 'all';
  const names = text === 'all' ? kNames : text.split(',').map((name) => name.trim());
  if (names.some((name) => !kNames.includes(name))) {
    throw parsed.refuse('trainer', `all or a list of ${kTrainerNames}`, text);
  }
  const plan = {
    repeats: parsed.integer('repeats', 12, 1, 100_000),
    seconds: parsed.number('seconds', 30, 'a number above 0', (value) => value > 0),
    tiny: parsed.flag('tiny'),
  };
  const file = parsed.text('save');
  requireOutputFile('bench', file);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts: Interrupts = new Interrupts(() => {
    progress.close();
    process.exit(interrupts.exitCode);
  });
  try {
    const chosen = kTrainers.filter(({ name }) => names.includes(name));
    const command = ['lowrank bench', ...args].join(' ');
    const result = await runTrainers(chosen, plan, command, progress);
    const saved = `${JSON.stringify(result, null, 1)}\n`;
    process.stdout.write(json ? saved : trainersText(result));
    if (file !== undefined) writeOutputFile('bench', file, saved);
  } finally {
    interrupts.dispose();
  }
  return exitCodes.ok;
}
