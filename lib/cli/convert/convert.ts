/** `lowrank convert`: a checkpoint in another format, with the same values. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import type { GgufType } from '../../checkpoint/gguf/block-types.js';
import { ggufBlockTypes } from '../../checkpoint/gguf/blocks/parts.js';
import { openGguf } from '../../checkpoint/gguf/gguf.js';
import { floatTypes } from '../../checkpoint/gguf/quantize/floats.js';
import { kConfigFile } from '../../checkpoint/peft/peft-config.js';
import { anyOf, LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { jsonText, mebibytes, Progress, table } from '../../report/terminal.js';
import { Arguments } from '../command/arguments.js';
import { exitCodes } from '../command/exit-codes.js';
import { statOf } from '../command/require-new-output.js';
import {
  type Conversion,
  type ConversionFacts,
  type ConversionOptions,
  kOp,
} from './conversion.js';
import { factorTypes, ggufToPeft, peftToGguf } from './convert-adapter.js';
import { folderToGguf } from './folder-to-gguf.js';
import { ggufToFolder } from './gguf-to-folder.js';
import { ggufToGguf } from './requantize-gguf.js';

const kHelp = `Converts a model between a Hugging Face folder and GGUF, or a LoRA adapter between PEFT and GGUF.

Usage: lowrank convert IN OUT [options]

IN               OUT
model folder     a new .gguf file                     (Hugging Face: config.json, model.safetensors, ...)
GGUF model       a new or empty folder, or a new .gguf file with --requantize
PEFT adapter     a new .gguf file, for llama.cpp's --lora
GGUF adapter     a new or empty folder

A model keeps its values: a layer without an exact counterpart is rejected by name. OUT appears whole, or
not at all.

  --to FORMAT        gguf or hf                                         [by the ending of OUT]
  --requantize TYPE  weights of a model in this type, with the added error of each layer: ${anyOf(
    floatTypes.map((type) => type.toLowerCase()),
  )};
                     to GGUF also q8_0, q4_k, and the others of docs/formats.md
  --no-vocabulary    leave out the tokenizer of a model
  --base PATH        the base model of an adapter: config.json, a folder with one, or a .gguf file. To GGUF
                     always; back for llama (and Mistral) alone, whose rows of q and k have another order
  --type T           type of an adapter's factors in GGUF: f32, f16, bf16 or q8_0          [as stored]
  --name NAME        general.name of the GGUF file                            [the name of the folder]
  --json             one JSON object on stdout
`;

const kOptions = {
  to: { type: 'string' },
  requantize: { type: 'string' },
  'no-vocabulary': { type: 'boolean' },
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
  const conversion = conversionOf(source, target, readTo(parsed));
  const extra = (Object.keys(options) as (keyof ConversionOptions)[]).find(
    (name) => !conversion.options.includes(name),
  );
  if (extra !== undefined) {
    const expected = `left out for a ${conversion.from}, which becomes a ${conversion.to}`;
    throw parsed.refuse(kNames[extra], expected, String(options[extra]));
  }
  const json = parsed.flag('json');
  const progress = new Progress(json);
  let phase = '';
  const facts = conversion.run(source, target, options, (text, done, total) => {
    if (text !== phase) progress.phase(text);
    phase = text;
    progress.update(done, total);
  });
  progress.close();
  const { from, to } = conversion;
  if (json) {
    process.stdout.write(jsonText({ in: source, out: target, from, to, ...facts }));
    return exitCodes.ok;
  }
  for (const warning of facts.warnings) process.stderr.write(`lowrank: ${kOp}: ${warning}\n`);
  process.stdout.write(described(facts, [from, to], target));
  return exitCodes.ok;
}

const kNames: Readonly<Record<keyof ConversionOptions, string>> = {
  base: 'base',
  type: 'type',
  name: 'name',
  requantize: 'requantize',
  noVocabulary: 'no-vocabulary',
};

/** The facts as a table, after one of the layers that changed. */
function described(facts: ConversionFacts, [from, to]: [string, string], target: string): string {
  const { errors = [], error, types, modules, ranks, alpha, tensors, bytes } = facts;
  const percent = (value: number) => `${(100 * value).toFixed(3)} %`;
  const changed = errors.map((each) => [each.layer, each.type, percent(each.error)]);
  const head = ['layer', 'type', 'added error'];
  const row = (name: string, value: string | undefined) =>
    value === undefined ? [] : [[name, value]];
  const rows = [
    ['from', from],
    ['to', to],
    ['architecture', printable(facts.architecture).slice(1, -1)],
    ...row('modules', modules?.toString()),
    ...row('rank', ranks?.join(', ')),
    ...row('alpha', alpha?.toString()),
    ...row('tensors', tensors?.toString()),
    ...row('weights in', types === undefined || types.length === 0 ? undefined : types.join(', ')),
    ...row(
      'added error',
      error === undefined ? undefined : `${percent(error)} of the weights' norm`,
    ),
    ...row('size', bytes === undefined ? undefined : mebibytes(bytes)),
    ['written to', printable(target)],
  ];
  const layers = changed.length === 0 ? '' : `${table([head, ...changed], [2])}\n`;
  return layers + table(rows, []);
}

type Format = 'gguf' | 'hf';

const readTo = (parsed: Arguments): Format | undefined =>
  parsed.text('to') === undefined ? undefined : parsed.choice<Format>('to', 'gguf', ['gguf', 'hf']);

const kWeightTypes = [...floatTypes, ...ggufBlockTypes];

function readOptions(parsed: Arguments): ConversionOptions {
  const [base, name, type] = [parsed.text('base'), parsed.text('name'), parsed.text('type')];
  const types = Object.keys(factorTypes) as (keyof typeof factorTypes)[];
  const names = kWeightTypes.map((each) => each.toLowerCase());
  const chosen =
    parsed.text('requantize') === undefined
      ? -1
      : names.indexOf(parsed.choice('requantize', 'f32', names));
  return {
    ...(chosen >= 0 && { requantize: kWeightTypes[chosen] as GgufType }),
    ...(parsed.flag('no-vocabulary') && { noVocabulary: true as const }),
    ...(base !== undefined && { base }),
    ...(name !== undefined && { name }),
    ...(type !== undefined && { type: parsed.choice('type', 'f32', types) }),
  };
}

/** What IN is, and so what becomes of it. @throws ERR_UNSUPPORTED, ERR_VALUE */
function conversionOf(source: string, target: string, to: Format | undefined): Conversion {
  const checked = (conversion: Conversion, becomes: Format): Conversion => {
    if (to === undefined || to === becomes) return conversion;
    const text = `${kOp}: --to must be ${becomes} for a ${conversion.from}, got ${to}`;
    throw new LowrankError('ERR_VALUE', text, { op: kOp });
  };
  const refuse = (got: string): never => {
    const expected = 'must be a model folder, an adapter folder or a GGUF file';
    const text = `${kOp}: ${printable(source)} ${expected}, got ${got}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: kOp });
  };
  if (statOf(kOp, source).isDirectory()) {
    if (existsSync(path.join(source, kConfigFile))) return checked(peftToGguf, 'gguf');
    if (existsSync(path.join(source, 'config.json'))) return checked(folderToGguf, 'gguf');
    return refuse(`a folder without config.json and ${kConfigFile}`);
  }
  if (path.extname(source).toLowerCase() !== '.gguf') return refuse('another file');
  const kind = openGguf(source).metadata.get('general.type')?.value;
  if (kind === 'adapter') return checked(ggufToPeft, 'hf');
  const format = to ?? (path.extname(target).toLowerCase() === '.gguf' ? 'gguf' : 'hf');
  return format === 'gguf' ? ggufToGguf : ggufToFolder;
}
