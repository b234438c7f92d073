/** Files for the results of a command. A file that cannot be written is rejected before the work, not after it. */

import { existsSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileError } from '../../checkpoint/files/file-access.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';

/**
 * Checks this before minutes are spent.
 * @param file undefined if none was requested
 * @throws ERR_FILE_NOT_FOUND if the folder does not exist · ERR_PATH if it is a folder itself
 */
export function requireOutputFile(op: string, file: string | undefined): void {
  if (file === undefined) return;
  const full = path.resolve(file);
  if (!existsSync(path.dirname(full))) {
    const text = `${op}: the folder of ${printable(file)} does not exist`;
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op });
  }
  if (statSync(full, { throwIfNoEntry: false })?.isDirectory()) {
    const text = `${op}: ${printable(file)} must be a file to write, got a folder`;
    throw new LowrankError('ERR_PATH', text, { op });
  }
}

/** @throws ERR_FILE · ERR_FILE_NOT_FOUND · ERR_PATH · ERR_DISK_FULL */
export function writeOutputFile(op: string, file: string, content: string | Uint8Array): void {
  try {
    writeFileSync(file, content);
  } catch (error) {
    throw fileError(op, file, error);
  }
}
