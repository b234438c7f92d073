/** What `lowrank info PATH` says of a checkpoint: its tensors by type, and what it is. */

import fs from 'node:fs';
import path from 'node:path';
import { fileError } from '../../checkpoint/files/file-access.js';
import { jsonBounds } from '../../checkpoint/files/json-bounds.js';
import { type JsonObject, readJsonObject } from '../../checkpoint/files/json-file.js';
import { openGguf } from '../../checkpoint/gguf/gguf.js';
import { openSafetensors } from '../../checkpoint/safetensors.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { ggufFacts } from './gguf-facts.js';
import { count, type ModelFacts, type TensorSize, text } from './model-facts.js';

/** Tensors of one type. */
export interface TypeRow {
  readonly type: string;
  readonly tensors: number;
  readonly elements: number;
  readonly bytes: number;
  readonly bitsPerWeight: number;
}

/** The facts of `lowrank info PATH`. */
export interface CheckpointFacts extends ModelFacts {
  readonly path: string;
  readonly kind: string;
  readonly files: number;
  readonly bytes: number;
  readonly tensors: number;
  readonly elements: number;
  /** Of all tensors; null without tensors, and where a folder's weights are packed. */
  readonly bitsPerWeight: number | null;
  readonly types: readonly TypeRow[];
}

const kOp = 'info';

/**
 * The facts of a `.gguf` file, a `.safetensors` file or a folder with safetensors files.
 * @throws LowrankError as the readers do · ERR_FILE_NOT_FOUND for a folder without such a file · ERR_UNSUPPORTED
 */
export function checkpointFacts(given: string): CheckpointFacts {
  if (isFolder(given)) return folderFacts(given);
  const suffix = path.extname(given).toLowerCase();
  if (suffix === '.gguf') {
    const file = openGguf(given);
    const { kind, model, sizes } = ggufFacts(file);
    return { path: given, kind, ...model, ...sum(1, file.byteLength, sizes) };
  }
  if (suffix === '.safetensors') {
    const [bytes, sizes] = safetensorsSizes(given);
    return { path: given, kind: 'safetensors', ...sum(1, bytes, sizes) };
  }
  const what = `${printable(given)} must be a folder, a .safetensors file or a .gguf file, got another file`;
  throw new LowrankError('ERR_UNSUPPORTED', `${kOp}: ${what}`, { op: kOp });
}

function isFolder(given: string): boolean {
  try {
    return fs.statSync(given).isDirectory();
  } catch (error) {
    throw fileError(kOp, given, error);
  }
}

/** Unlike `openHfModel`, this takes folders of any architecture, and of quantised weights. */
function folderFacts(folder: string): CheckpointFacts {
  const names = fs
    .readdirSync(folder)
    .filter((name) => name.endsWith('.safetensors'))
    .sort();
  if (names.length === 0) {
    const what = `${printable(folder)} must hold safetensors files, got none. Give a .gguf file by its own path`;
    throw new LowrankError('ERR_FILE_NOT_FOUND', `${kOp}: ${what}`, { op: kOp });
  }
  const read = names.map((name) => safetensorsSizes(path.join(folder, name)));
  const bytes = read.reduce((total, [size]) => total + size, 0);
  const sizes = read.flatMap(([, each]) => each);
  const config = path.join(folder, 'config.json');
  const model = fs.existsSync(config)
    ? configFacts(readJsonObject(kOp, config, jsonBounds.config))
    : {};
  const facts = sum(names.length, bytes, sizes);
  // Several codes may share an element of the file: its bits are not those of a weight.
  const packed = model.quantisation === undefined ? {} : { bitsPerWeight: null };
  return { path: folder, kind: 'safetensors', ...model, ...facts, ...packed };
}

function safetensorsSizes(file: string): [number, TensorSize[]] {
  const opened = openSafetensors(file);
  const sizes = opened.names().flatMap((name) => {
    const info = opened.info(name);
    return info === undefined ? [] : [{ ...info, type: info.dtype }];
  });
  return [opened.byteLength, sizes];
}

/** Of another architecture than this library reads a field may have another type: it is left out. */
function configFacts(config: JsonObject): ModelFacts {
  const quantisation = config.quantization_config as JsonObject | null | undefined;
  const method = typeof quantisation === 'object' ? quantisation?.quant_method : undefined;
  const format = typeof quantisation === 'object' ? quantisation?.format : undefined;
  const classes = Array.isArray(config.architectures) ? config.architectures : [];
  const described = [method, format].filter((part) => typeof part === 'string').join(', ');
  return {
    ...text('architecture', config.model_type ?? classes[0]),
    ...count('layers', config.num_hidden_layers),
    ...count('context', config.max_position_embeddings),
    ...count('vocabulary', config.vocab_size),
    ...text('quantisation', described),
  };
}

/** The tensors by type, the largest share of bytes first. */
function sum(files: number, bytes: number, sizes: readonly TensorSize[]) {
  const rows = new Map<string, { tensors: number; elements: number; bytes: number }>();
  for (const { type, shape, byteLength } of sizes) {
    const row = rows.get(type) ?? { tensors: 0, elements: 0, bytes: 0 };
    row.tensors++;
    row.elements += shape.reduce((product, dim) => product * dim, 1);
    row.bytes += byteLength;
    rows.set(type, row);
  }
  const types = [...rows]
    .map(([type, row]) => ({ type, ...row, bitsPerWeight: bits(row.bytes, row.elements) }))
    .sort((a, b) => b.bytes - a.bytes || (a.type < b.type ? -1 : 1));
  const elements = types.reduce((total, row) => total + row.elements, 0);
  const stored = types.reduce((total, row) => total + row.bytes, 0);
  return {
    files,
    bytes,
    tensors: sizes.length,
    elements,
    bitsPerWeight: elements === 0 ? null : bits(stored, elements),
    types,
  };
}

/** Rounded to four decimals: 4.5, 2.0625. */
const bits = (bytes: number, elements: number): number =>
  elements === 0 ? 0 : Math.round((8e4 * bytes) / elements) / 1e4;
