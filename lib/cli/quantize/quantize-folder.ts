/** `lowrank quantize` of a folder: shard by shard, interrupted and continued at any time. */

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
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { copyModelFiles } from '../command/model-folder.js';
import { requireNewFolder, statOf } from '../command/require-new-output.js';
import { quantizationFiles } from './quantization-config.js';
import { kOp, type LayerQuantizer } from './quantize-layers.js';
import type { QuantizeSettings } from './settings.js';

const kIndexFile = 'model.safetensors.index.json';

/**
 * The folder grows as `OUT.partial`, one finished file after another, and gets its name at the end. The marker next to
 * it, `OUT.partial.json`, records the source and the settings, so that only the same command continues it. It is
 * written before the folder is made, and removed after the folder has its name.
 */
export async function quantizeFolder(
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
  quantizer.expect(files.map(({ file }) => file));
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
      copyModelFiles(source, partial);
      if (quantizer.reason() === undefined) {
        writeConfig(source, partial, settings, quantizer.left);
      } else copyConfig(source, partial);
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

function copyConfig(source: string, target: string): void {
  const file = path.join(source, 'config.json');
  if (fs.existsSync(file)) fs.copyFileSync(file, path.join(target, 'config.json'));
}

/**
 * Writes config.json with the section that tells transformers how the weights are stored, and the files that other readers take.
 * @param left modules with matrices that stay as they are
 */
function writeConfig(
  source: string,
  target: string,
  settings: QuantizeSettings,
  left: readonly string[],
): void {
  const file = path.join(source, 'config.json');
  const { config: section, others } = quantizationFiles(kOp, settings, left);
  const write = (name: string, value: object): void =>
    fs.writeFileSync(path.join(target, name), `${JSON.stringify(value, null, 2)}\n`);
  for (const [name, value] of Object.entries(others)) write(name, value);
  if (!fs.existsSync(file)) return;
  const config: Record<string, unknown> = { ...readJsonObject(kOp, file, jsonBounds.config) };
  if (section !== undefined) config.quantization_config = section;
  write('config.json', config);
}
