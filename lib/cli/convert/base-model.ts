/** The base model of an adapter, as far as a conversion needs it: its architecture, its heads. */

import path from 'node:path';
import { jsonBounds } from '../../checkpoint/files/json-bounds.js';
import { readJsonObject } from '../../checkpoint/files/json-file.js';
import type { GgufAdapterBase } from '../../checkpoint/gguf/adapter/base.js';
import { type GgufFile, openGguf } from '../../checkpoint/gguf/gguf.js';
import { ggufArchitectures } from '../../checkpoint/gguf/names.js';
import { anyOf, LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { parseDecoderConfig } from '../../model/read-config.js';
import { statOf } from '../command/require-new-output.js';

/**
 * Reads `config.json`, that of a folder, or the header of a GGUF model.
 * @throws LowrankError as the readers do · ERR_UNSUPPORTED for another architecture · ERR_FILE
 */
export function readBaseModel(op: string, given: string): GgufAdapterBase {
  if (statOf(op, given).isDirectory()) return fromConfig(op, path.join(given, 'config.json'));
  return path.extname(given).toLowerCase() === '.gguf'
    ? fromGguf(op, openGguf(given))
    : fromConfig(op, given);
}

function fromConfig(op: string, file: string): GgufAdapterBase {
  const config = parseDecoderConfig(
    op,
    printable(file),
    readJsonObject(op, file, jsonBounds.config),
  );
  const [first] = config.layers;
  return {
    // llama.cpp's converter writes Mistral as llama.
    architecture: config.architecture === 'mistral' ? 'llama' : config.architecture,
    tied: config.tieWordEmbeddings,
    ...(first && { heads: first.attention.heads, kvHeads: first.attention.kvHeads }),
  };
}

function fromGguf(op: string, file: GgufFile): GgufAdapterBase {
  const what = printable(file.path);
  const value = (key: string) => file.metadata.get(key)?.value;
  if (value('general.type') === 'adapter') {
    throw new LowrankError('ERR_FILE', `${op}: ${what} must be a model, got an adapter`, { op });
  }
  const architecture = value('general.architecture');
  if (typeof architecture !== 'string' || !ggufArchitectures.includes(architecture)) {
    const got = typeof architecture === 'string' ? printable(architecture) : 'none';
    const text = `${op}: ${what} must have the architecture ${anyOf(ggufArchitectures)}, got ${got}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op });
  }
  const heads = value(`${architecture}.attention.head_count`);
  const kvHeads = value(`${architecture}.attention.head_count_kv`) ?? heads;
  return {
    architecture,
    tied: !file.has('output.weight'),
    ...(typeof heads === 'number' && { heads }),
    ...(typeof kvHeads === 'number' && { kvHeads }),
  };
}
