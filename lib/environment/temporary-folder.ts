/** Folders for files of one run. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileError } from '../checkpoint/files/file-access.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';

/**
 * Makes a new folder. The caller removes it.
 * @throws ERR_FILE_NOT_FOUND · ERR_PATH · ERR_DISK_FULL if `TMPDIR` is not writable
 */
export function makeTemporaryFolder(op: string, prefix: string): string {
  const place = os.tmpdir();
  try {
    return fs.mkdtempSync(path.resolve(place, prefix));
  } catch (error) {
    const { code } = fileError(op, place, error);
    const reason = (error as NodeJS.ErrnoException).code ?? 'unknown error';
    const expected = 'a writable folder';
    const text = `${op}: TMPDIR must be ${expected}, got ${printable(place)} (${reason})`;
    throw new LowrankError(code, text, { op, cause: error });
  }
}

/** Checks this before minutes are spent. @throws as {@link makeTemporaryFolder} */
export function requireTemporaryFolder(op: string): void {
  fs.rmdirSync(makeTemporaryFolder(op, `lowrank-${op}-`));
}
