/** `lowrank convert`: a checkpoint in another format, with the same values. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { openGguf } from '../../checkpoint/gguf/gguf.js';
import { kConfigFile } from '../../checkpoint/peft/peft-config.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { jsonText, mebibytes, table } from '../../report/terminal.js';
import { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { statOf } from '../command/require-new-output.js';
import { type Conversion, type ConversionOptions, kOp } from './conversion.js';
import { factorTypes, ggufToPeft, peftToGguf } from './convert-adapter.js';

const kHelp = `Converts a LoRA adapter between PEFT and the GGUF of llama.cpp.

Usage: lowrank convert IN OUT [options]

IN is a PEFT adapter folder, and OUT a new .gguf file for llama.cpp's --lora; or IN is such a file, and
OUT a new or empty folder. OUT appears whole, or not at all.

  --base PATH        the base model: config.json, a folder with one, or a .gguf file. To GGUF always; back
                     for llama (and Mistral) alone, whose rows of q and k have another order
  --type T           type of the factors in GGUF: f32, f16, bf16 or q8_0          [as stored]
  --name NAME        general.name of the GGUF file                                [none]
  --json             one JSON object on stdout
`;

const kOptions = {
  base: { type: 'string' },
  type: { type: 'string' },
  name: { type: 'string' },
  json: { type: 'boolean' },
} as const;

/** Runs the subcommand. */
export async function convertCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse(kOp, args, kOptions, { min: 2, max: 2, names: 'IN and OUT' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const [source, target] = parsed.positionals as [string, string];
  const options = readOptions(parsed);
  const conversion = conversionOf(source);
  const extra = (Object.keys(options) as (keyof ConversionOptions)[]).find(
    (name) => !conversion.options.includes(name),
  );
  if (extra !== undefined) {
    const expected = `left out for a ${conversion.from}, which becomes a ${conversion.to}`;
    throw parsed.refuse(extra, expected, options[extra] as string);
  }
  const facts = conversion.run(source, target, options);
  const { from, to } = conversion;
  if (parsed.flag('json')) {
    process.stdout.write(jsonText({ in: source, out: target, from, to, ...facts }));
    return exitCodes.ok;
  }
  for (const warning of facts.warnings) process.stderr.write(`lowrank: ${kOp}: ${warning}\n`);
  const rows = [
    ['from', from],
    ['to', to],
    ['architecture', printable(facts.architecture).slice(1, -1)],
    ['modules', String(facts.modules)],
    ['rank', facts.ranks.join(', ')],
    ['alpha', String(facts.alpha)],
    ...(facts.bytes === undefined ? [] : [['size', mebibytes(facts.bytes)]]),
    ['written to', printable(target)],
  ];
  process.stdout.write(table(rows, []));
  return exitCodes.ok;
}

function readOptions(parsed: Arguments): ConversionOptions {
  const [base, name, type] = [parsed.text('base'), parsed.text('name'), parsed.text('type')];
  const types = Object.keys(factorTypes) as (keyof typeof factorTypes)[];
  return {
    ...(base !== undefined && { base }),
    ...(name !== undefined && { name }),
    ...(type !== undefined && { type: parsed.choice('type', 'f32', types) }),
  };
}

/** What IN is, and so what becomes of it. @throws ERR_UNSUPPORTED */
function conversionOf(source: string): Conversion {
  const refuse = (got: string): never => {
    const expected = 'must be a PEFT adapter folder or a GGUF adapter file';
    const text = `${kOp}: ${printable(source)} ${expected}, got ${got}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: kOp });
  };
  if (statOf(kOp, source).isDirectory()) {
    if (existsSync(path.join(source, kConfigFile))) return peftToGguf;
    return refuse(`a folder without ${kConfigFile}`);
  }
  if (path.extname(source).toLowerCase() !== '.gguf') return refuse('another file');
  const kind = openGguf(source).metadata.get('general.type')?.value;
  return kind === 'adapter' ? ggufToPeft : refuse('a GGUF model');
}
