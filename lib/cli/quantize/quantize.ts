/**
 * `lowrank quantize`: converts the linear layers of a checkpoint to bitsandbytes' layout, tensor by
 * tensor.
 */

import fs from 'node:fs';
import path from 'node:path';
import {
  commitFolder,
  removeLeftovers,
  writeFileAtomic,
} from '../../checkpoint/files/atomic-write.js';
import { fileError } from '../../checkpoint/files/file-access.js';
import { jsonBounds } from '../../checkpoint/files/json-bounds.js';
import { readJsonObject } from '../../checkpoint/files/json-file.js';
import { lockOutput } from '../../checkpoint/files/lock.js';
import { openSafetensors, writeSafetensors } from '../../checkpoint/safetensors.js';
import { anyOf, LowrankError } from '../../core/errors.js';
import { bitsandbytesStored } from '../../core/formats.js';
import { printable } from '../../core/printable.js';
import { jsonText, mebibytes, Progress, table } from '../../report/terminal.js';
import { Arguments } from '../command/arguments.js';
import { readDevice } from '../command/device-option.js';
import { exitCodes } from '../command/exit-codes.js';
import { Interrupts } from '../command/interrupt.js';
import { requireNewFile, requireNewFolder, statOf } from '../command/require-new-output.js';
import { type LayerQuantizer, makeQuantizer, type QuantizeSettings } from './quantize-layers.js';

const kHelp = `Quantises the linear layers of a checkpoint, in the layout of bitsandbytes.

Usage: lowrank quantize IN OUT [options]

IN is a .safetensors file or a Hugging Face folder (single file or shards); OUT the same kind, new:
a file that exists is refused, and so is a folder with files in it.

  --format F         ${`${anyOf(bitsandbytesStored)} (LLM.int8)`.padEnd(51)} [nf4]
  --blocksize N      elements that share a scale, 32, 64, ... 4096        [the format's own]
  --double-quant     quantise the scales too
  --skip LIST        parts of names to leave as they are                  [lm_head,embed,norm]
  --device D         where to compute                                     [LOWRANK_DEVICE, or cpu]
  --json             one JSON object on stdout, no progress

Quantised are the tensors named *.weight with two dimensions in f32, bf16 or f16. OUT appears whole, or
not at all; a folder that was interrupted goes on where it stopped when the same command runs again.
`;

const kOptions = {
  format: { type: 'string' },
  blocksize: { type: 'string' },
  'double-quant': { type: 'boolean' },
  skip: { type: 'string' },
  device: { type: 'string' },
  json: { type: 'boolean' },
} as const;

const kOp = 'quantize';
const kIndexFile = 'model.safetensors.index.json';

/** Runs the subcommand. */
export async function quantizeCommand(args: readonly string[]): Promise<number> {
  const parsed = Arguments.parse(kOp, args, kOptions, { min: 2, max: 2, names: 'IN and OUT' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const [source, target] = parsed.positionals as [string, string];
  const settings = readSettings(parsed);
  const json = parsed.flag('json');
  const progress = new Progress(json);
  const interrupts = new Interrupts();
  const quantizer = makeQuantizer(kOp, settings, {
    progress: (done, total, name) => progress.update(done, total, printable(name)),
    signal: interrupts.signal,
  });
  try {
    progress.phase('quantising');
    const isFolder = statOf(kOp, source).isDirectory();
    if (isFolder) await quantizeFolder(source, target, settings, quantizer);
    else await quantizeFile(source, target, quantizer);
    progress.close();
    const reason = quantizer.reason();
    if (reason !== undefined) {
      const text = `no layer was quantised: ${reason}. ${printable(target)} has the tensors of IN`;
      process.stderr.write(`lowrank: ${kOp}: ${text}\n`);
    }
    const { layers, before_bytes, after_bytes } = quantizer.totals;
    const facts = { out: target, ...settings, layers, before_bytes, after_bytes };
    if (json) process.stdout.write(jsonText(facts));
    else {
      const rows = [
        ['layers quantised', String(layers)],
        ['their size before', mebibytes(before_bytes)],
        ['their size after', mebibytes(after_bytes)],
        ['written to', printable(target)],
      ];
      process.stdout.write(table(rows));
    }
    return exitCodes.ok;
  } catch (error) {
    progress.close();
    if (!interrupts.signal.aborted) throw error;
    process.stderr.write('lowrank: stopped; run the same command again to go on\n');
    return interrupts.exitCode;
  } finally {
    interrupts.dispose();
  }
}

function readSettings(parsed: Arguments): QuantizeSettings {
  const format = parsed.choice('format', 'nf4', bitsandbytesStored);
  const blocksize = parsed.powerOfTwo('blocksize', 32, 4096);
  const device = readDevice(parsed);
  const skip = (parsed.text('skip') ?? 'lm_head,embed,norm').split(',').map((part) => part.trim());
  if (format === 'int8-rowwise') {
    const expected = `left out with --format ${format}, which has a scale a row`;
    if (blocksize !== undefined) throw parsed.refuse('blocksize', expected, String(blocksize));
    if (parsed.flag('double-quant'))
      throw parsed.refuse('double-quant', expected, '--double-quant');
  }
  return {
    format,
    ...(blocksize === undefined ? {} : { blocksize }),
    doubleQuant: parsed.flag('double-quant'),
    skip: skip.filter((part) => part !== ''),
    ...(device === undefined ? {} : { device }),
  };
}

async function quantizeFile(
  source: string,
  target: string,
  quantizer: LayerQuantizer,
): Promise<void> {
  requireNewFile(kOp, source, target, ' (IN is a file)');
  const lock = lockOutput(kOp, target);
  try {
    removeLeftovers(path.resolve(target));
    const file = openSafetensors(source);
    quantizer.expect(file.names().length);
    const tensors = await quantizer.quantizeAll(file);
    writeSafetensors(target, tensors, file.metadata);
  } finally {
    lock.release();
  }
}

/**
 * The folder grows as `OUT.partial`, one finished file after another, and gets its name at the end. The marker next to
 * it, `OUT.partial.json`, records the source and the settings, so that only the same command continues it. It is
 * written before the folder is made, and removed after the folder has its name.
 */
async function quantizeFolder(
  source: string,
  target: string,
  settings: QuantizeSettings,
  quantizer: LayerQuantizer,
): Promise<void> {
  const shards = shardsOf(source);
  const full = path.resolve(target);
  try {
    fs.mkdirSync(path.dirname(full), { recursive: true });
  } catch (error) {
    throw fileError(kOp, target, error);
  }
  const lock = lockOutput(kOp, full);
  try {
    await quantizeShards(source, shards, full, settings, quantizer);
  } finally {
    lock.release();
  }
}

async function quantizeShards(
  source: string,
  shards: readonly string[],
  target: string,
  settings: QuantizeSettings,
  quantizer: LayerQuantizer,
): Promise<void> {
  const partial = `${target}.partial`;
  const markerFile = `${partial}.json`;
  const marker = JSON.stringify({ settings, shards: shards.map((name) => identity(source, name)) });
  // The run ended between renaming the folder and removing the marker.
  const complete =
    isMarker(markerFile, marker) &&
    !fs.existsSync(partial) &&
    shards.every((name) => fs.existsSync(path.join(target, name)));
  if (!complete) {
    requireNewFolder(kOp, target);
    preparePartial(partial, markerFile, marker);
  }
  const folder = complete ? target : partial;
  const files = shards.map((name) => ({ name, file: openSafetensors(path.join(source, name)) }));
  quantizer.expect(files.reduce((sum, { file }) => sum + file.names().length, 0));
  const weightMap: Record<string, string> = {};
  let total_size = 0;
  for (const { name, file } of files) {
    const done = path.join(folder, name);
    removeLeftovers(done);
    if (fs.existsSync(done)) quantizer.skip(file);
    else writeSafetensors(done, await quantizer.quantizeAll(file), file.metadata);
    const written = openSafetensors(done);
    for (const key of written.names()) weightMap[key] = name;
    total_size += written.byteLength;
  }
  try {
    if (!complete) {
      if (shards.length > 1) {
        const index = { metadata: { total_size }, weight_map: weightMap };
        fs.writeFileSync(path.join(partial, kIndexFile), `${JSON.stringify(index, null, 2)}\n`);
      }
      copyRest(source, partial);
      writeConfig(source, partial, quantizer.reason() === undefined ? settings : undefined);
      commitFolder(kOp, partial, target);
    }
    fs.rmSync(markerFile);
  } catch (error) {
    throw fileError(kOp, target, error);
  }
}

/** Names of the files that hold tensors, in order. */
function shardsOf(folder: string): string[] {
  const index = path.join(folder, kIndexFile);
  if (!fs.existsSync(index)) {
    if (fs.existsSync(path.join(folder, 'model.safetensors'))) return ['model.safetensors'];
    const text = `${kOp}: ${printable(folder)} must hold model.safetensors or ${kIndexFile}, got neither`;
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op: kOp });
  }
  const map: unknown = readJsonObject(kOp, index, jsonBounds.index).weight_map;
  const names = map !== null && typeof map === 'object' ? Object.values(map) : [];
  for (const name of names) {
    const plain = typeof name === 'string' && /^[\w.-]+\.safetensors$/.test(name);
    if (plain && !name.startsWith('.')) continue;
    const text = `${kOp}: ${printable(index)} must name plain .safetensors files, got ${printable(String(name))}`;
    throw new LowrankError('ERR_PATH', text, { op: kOp });
  }
  if (names.length === 0) {
    const text = `${kOp}: ${printable(index)} must hold a weight_map, got none`;
    throw new LowrankError('ERR_FILE', text, { op: kOp });
  }
  return [...new Set(names as string[])].sort();
}

function preparePartial(partial: string, markerFile: string, marker: string): void {
  try {
    if (fs.existsSync(partial)) {
      if (!fs.existsSync(markerFile)) {
        const text = `${kOp}: ${printable(partial)} must be free for unfinished output, got another folder`;
        throw new LowrankError('ERR_PATH', text, { op: kOp });
      }
      if (isMarker(markerFile, marker)) return;
      fs.rmSync(partial, { recursive: true });
    }
    writeFileAtomic(kOp, markerFile, [new TextEncoder().encode(marker)]);
    fs.mkdirSync(partial);
  } catch (error) {
    throw fileError(kOp, partial, error);
  }
}

/** Is a file the marker of the same command? */
function isMarker(file: string, marker: string): boolean {
  return fs.existsSync(file) && fs.readFileSync(file, 'utf8') === marker;
}

function identity(folder: string, name: string): object {
  const { size, mtimeMs } = statOf(kOp, path.join(folder, name));
  return { name, size, mtimeMs };
}

/** Copies the tokenizer and other small files; weights in other formats are not copied. */
function copyRest(source: string, target: string): void {
  for (const entry of fs.readdirSync(source, { withFileTypes: true })) {
    const copied = entry.isFile() && /\.(json|txt|model|jinja|md)$/.test(entry.name);
    if (!copied || entry.name === kIndexFile || entry.name === 'config.json') continue;
    fs.copyFileSync(path.join(source, entry.name), path.join(target, entry.name));
  }
}

/**
 * Writes config.json with the section that tells transformers how the weights are stored.
 * @param settings undefined keeps the original section
 */
function writeConfig(source: string, target: string, settings: QuantizeSettings | undefined): void {
  const file = path.join(source, 'config.json');
  if (!fs.existsSync(file)) return;
  const config: Record<string, unknown> = { ...readJsonObject(kOp, file, jsonBounds.config) };
  const section = settings === undefined ? undefined : quantizationConfig(settings);
  if (section !== undefined) config.quantization_config = section;
  fs.writeFileSync(path.join(target, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
}

/** In the form that transformers writes, which does not support blockwise int8. */
function quantizationConfig({ format, doubleQuant, skip }: QuantizeSettings): object | undefined {
  if (format === 'int8') return undefined;
  const fourBits = format !== 'int8-rowwise';
  const shared = {
    quant_method: 'bitsandbytes',
    _load_in_4bit: fourBits,
    _load_in_8bit: !fourBits,
    load_in_4bit: fourBits,
    load_in_8bit: !fourBits,
    llm_int8_skip_modules: skip,
  };
  if (!fourBits) return { ...shared, llm_int8_threshold: 6, llm_int8_has_fp16_weight: false };
  return {
    ...shared,
    bnb_4bit_quant_type: format,
    bnb_4bit_use_double_quant: doubleQuant,
    bnb_4bit_compute_dtype: 'bfloat16',
    bnb_4bit_quant_storage: 'uint8',
  };
}
