/** Which files hold the data, and how. */

import fs from 'node:fs';
import path from 'node:path';
import { fileError, withFile } from '../checkpoint/files/file-access.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';

/** Plain text, or examples: one JSON object a line, or a table. */
export type DataFormat = 'text' | 'jsonl' | 'csv' | 'tsv';

export interface DataFile {
  readonly file: string;
  readonly format: DataFormat;
}

const kByEnding: Readonly<Record<string, DataFormat>> = {
  '.txt': 'text',
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'jsonl',
  '.csv': 'csv',
  '.tsv': 'tsv',
};
/** A list of objects in one JSON value is for a folder of something else. */
const kInFolder = Object.keys(kByEnding).filter((ending) => ending !== '.json');
const kLooked_bytes = 4096;

const formatOf = (file: string): DataFormat | undefined =>
  kByEnding[path.extname(file).toLowerCase()];

/**
 * The files of `--data`: files, and folders of .txt, .jsonl, .ndjson, .csv and .tsv files in the order of their names. The ending of a
 * file says how it is read; without a known one it is text.
 * @param forced reads all files in one way
 * @throws LowrankError `ERR_FILE_NOT_FOUND`, `ERR_PATH` · `ERR_FILE` for JSON under the name of a text · `ERR_VALUE` for text and examples in
 * one run
 */
export function dataFiles(
  op: string,
  sources: readonly string[],
  forced?: DataFormat,
): readonly DataFile[] {
  const files = sources.flatMap((source) => filesOf(op, source));
  const found = files.map((file) => ({ file, format: forced ?? formatOf(file) ?? 'text' }));
  if (forced === undefined) for (const each of found) requireLook(op, each);
  const text = found.find(({ format }) => format === 'text');
  const table = found.find(({ format }) => format !== 'text');
  if (text !== undefined && table !== undefined) {
    const got = `${printable(text.file)} and ${printable(table.file)}`;
    const words = `${op}: --data must be text alone or examples alone, got ${got}`;
    throw new LowrankError('ERR_VALUE', words, { op });
  }
  return found;
}

function filesOf(op: string, source: string): string[] {
  try {
    if (!fs.statSync(source).isDirectory()) return [source];
    const names = fs
      .readdirSync(source)
      .filter((name) => kInFolder.includes(path.extname(name).toLowerCase()));
    if (names.length > 0) return names.sort().map((name) => path.join(source, name));
  } catch (error) {
    throw fileError(op, source, error);
  }
  const endings = kInFolder.join(', ');
  const text = `${op}: ${printable(source)} must hold files of data (${endings}), got a folder without any`;
  throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op });
}

/** Nobody wants a model that has learned to write JSON lines because a name was misleading. */
function requireLook(op: string, { file, format }: DataFile): void {
  if (format !== 'text' && path.extname(file).toLowerCase() !== '.json') return;
  const begin = withFile(op, file, {}, (open) =>
    open.read(0, Math.min(open.identity.size_bytes, kLooked_bytes)),
  );
  const text = new TextDecoder().decode(begin);
  const refuse = (expected: string, got: string, way: string): never => {
    const words = `${op}: ${printable(file)} must be ${expected}, got ${got}. ${way}`;
    throw new LowrankError('ERR_FILE', words, { op });
  };
  if (format === 'jsonl' && /^\s*\[/.test(text)) {
    refuse(
      'one JSON object a line',
      'a list',
      'Write each of its elements as a line of a .jsonl file',
    );
  }
  if (format === 'text' && /^\s*\[?\s*\{\s*"(?:[^"\\\n]|\\.){0,200}"\s*:/.test(text)) {
    const way = 'Name it .jsonl to train on its fields, or give --data-format text';
    refuse('plain text', 'JSON', way);
  }
}
