/** `lowrank merge MODEL ADAPTER OUT`: the form of the command for a model. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { printable } from '../../core/printable.js';
import { isGgufPath } from '../../model/gguf/open-model.js';
import { jsonText, Progress, table } from '../../report/terminal.js';
import type { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { Interrupts } from '../command/interrupt.js';
import { type ModelMergeFacts, mergedFormats, mergeIntoModel } from './merge-model.js';

/** The part of the help about it. */
export const mergeModelHelp = `
Usage: lowrank merge MODEL ADAPTER OUT [--format F]

Merges an adapter of any affine method into its model. OUT is a model folder, or a .gguf file.

  --format F         of the weights: bf16, f16, f32; of a folder also nf4, int4, fp8-e4m3, ... as lowrank quantize
                     has them, of a .gguf file q8_0, q4_k, ...                           [bf16]
`;

/** Is a path a model, and no adapter? */
export const isModelPath = (given: string): boolean =>
  isGgufPath(given) ||
  (existsSync(path.join(given, 'config.json')) &&
    !existsSync(path.join(given, 'adapter_config.json')));

/** Runs the command for a model. */
export async function mergeModelCommand(parsed: Arguments): Promise<number> {
  const { positionals } = parsed;
  const given = parsed.firstGiven(['by', 'weights', 'set']);
  if (given !== undefined) {
    throw parsed.refuse(given, 'left out for a model and its adapter', parsed.text(given) ?? '');
  }
  if (positionals.length !== 3) {
    throw parsed.wrong(`takes MODEL, ADAPTER and OUT, got ${positionals.map(printable).join(' ')}`);
  }
  const [model, adapter, out] = positionals as [string, string, string];
  const formats = isGgufPath(out) ? mergedFormats.gguf : mergedFormats.folder;
  const format = parsed.choice('format', 'bf16', formats);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts();
  let phase = '';
  const onProgress = (text: string, done: number, total: number) => {
    if (text !== phase) progress.phase(text);
    phase = text;
    progress.update(done, total);
  };
  try {
    const request = { model, adapter, out, format };
    const facts = await mergeIntoModel(request, onProgress, interrupts.signal);
    progress.close();
    if (json) process.stdout.write(jsonText({ in: [model, adapter], out, format, ...facts }));
    else process.stdout.write(described(facts, format, out));
    for (const warning of json ? [] : facts.warnings) {
      process.stderr.write(`lowrank: merge: ${warning}\n`);
    }
    return exitCodes.ok;
  } catch (error) {
    progress.close();
    if (!interrupts.signal.aborted) throw error;
    process.stderr.write('lowrank: stopped; nothing was written\n');
    return interrupts.exitCode;
  } finally {
    interrupts.dispose();
  }
}

function described(facts: ModelMergeFacts, format: string, out: string): string {
  const { architecture, layers, error } = facts;
  return table(
    [
      ['architecture', architecture],
      ['layers merged', String(layers)],
      ['weights in', format],
      ...(error === undefined
        ? []
        : [['rounding', `${(100 * error).toPrecision(3)} % of the weights' norm`]]),
      ['written to', printable(out)],
    ],
    [],
  );
}
