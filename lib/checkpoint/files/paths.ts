/**
 * Paths that come from the content of a file, such as the shard names of
 * `model.safetensors.index.json`.
 *
 * The rule for a name that a file gives for something inside a model folder:
 *
 * 1. As text it must be a plain relative path: segments of letters, digits and the like, joined by
 * `/`; no empty, `.` or `..` segment, no backslash, drive letter, control character or NUL, no
 * Windows device name. A rejected name never reaches the file system.
 * 2. On disk, with every symbolic link resolved (the last one and those of parent folders), it must
 * be inside the real path of the model folder.
 * 3. One exception: a Hugging Face hub cache keeps `models--x/snapshots/<revision>/file` as a link to
 * `models--x/blobs/<hash>`. If the real model folder is such a snapshot, targets in that very `blobs`
 * folder are allowed as well.
 * 4. It must be a regular file. It is opened without following a link that appears after the check.
 *
 * A path that the user gives follows links as usual: the rule only covers names from files.
 */

import fs from 'node:fs';
import path from 'node:path';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { fileError } from './file-access.js';

const kMaxNameLength = 512;
const kDeviceName = /^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)/i;

/**
 * Requires that a name from a file is a plain relative path. Looks only at the text.
 *
 * @param name the name in the file
 * @throws LowrankError `ERR_PATH`
 */
export function requirePlainName(op: string, name: string): void {
  const refuse = (got: string): never => {
    const text = `${op}: file name ${printable(name)} must be a plain relative path, got ${got}`;
    throw new LowrankError('ERR_PATH', text, { op });
  };
  if (name.length === 0) refuse('an empty name');
  if (name.length > kMaxNameLength) refuse(`${name.length} characters`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: refusing them is the point
  if (/[\u0000-\u001f\u007f-\u009f]/.test(name)) refuse('a control character');
  if (name.includes('\\')) refuse('a backslash');
  if (name.startsWith('/')) refuse('an absolute path');
  // This also rejects alternate data streams (`file:stream`) and URLs.
  if (name.includes(':')) refuse('a colon (a drive letter, stream or URL)');
  for (const segment of name.split('/')) {
    if (segment === '') refuse('an empty segment');
    if (segment === '.' || segment === '..') refuse(`the segment "${segment}"`);
    if (/[. ]$/.test(segment)) refuse('a segment that ends in a dot or space');
    if (kDeviceName.test(segment)) refuse('the name of a Windows device');
  }
}

/**
 * Requires that names stay distinct on a file system that ignores case or Unicode normal forms.
 *
 * @throws LowrankError `ERR_PATH` for `A.safetensors` together with `a.safetensors`
 */
export function requireDistinctNames(op: string, names: Iterable<string>): void {
  const seen = new Map<string, string>();
  for (const name of names) {
    const folded = name.normalize('NFKC').toLowerCase();
    const other = seen.get(folded);
    if (other !== undefined && other !== name) {
      const text =
        `${op}: file names must differ by more than case, ` +
        `got ${printable(other)} and ${printable(name)}`;
      throw new LowrankError('ERR_PATH', text, { op });
    }
    seen.set(folded, name);
  }
}

/**
 * The real path of a file that the content of another file names, by the rule above. Open it with
 * `noFollow: true`.
 *
 * @param folder the model folder that the user gave
 * @param name the name in the file
 * @returns an absolute path without symbolic links
 * @throws LowrankError `ERR_PATH` · `ERR_FILE_NOT_FOUND`
 */
export function resolveInside(op: string, folder: string, name: string): string {
  requirePlainName(op, name);
  const joined = path.join(folder, name);
  let realFolder: string;
  let real: string;
  try {
    realFolder = fs.realpathSync(folder);
    real = fs.realpathSync(joined);
  } catch (error) {
    throw fileError(op, joined, error);
  }
  if (isInside(realFolder, real)) return real;
  const blobs = hubBlobsFolder(realFolder);
  if (blobs !== undefined && isInside(blobs, real)) return real;
  const text =
    `${op}: file name ${printable(name)} must lead into ${printable(realFolder)}, ` +
    `got a symbolic link to ${printable(real)}`;
  throw new LowrankError('ERR_PATH', text, { op });
}

/** `<repo>/blobs` for a real path `<repo>/snapshots/<revision>[/...]`. */
function hubBlobsFolder(realFolder: string): string | undefined {
  const parts = realFolder.split(path.sep);
  const at = parts.lastIndexOf('snapshots');
  if (at < 1 || at === parts.length - 1) return undefined;
  return path.join(parts.slice(0, at).join(path.sep) || path.sep, 'blobs');
}

function isInside(folder: string, file: string): boolean {
  const relative = path.relative(folder, file);
  return relative !== '' && !relative.startsWith('..') && !path.isAbsolute(relative);
}
