/** Outputs of a command that must not exist yet. */

import fs from 'node:fs';
import { fileError } from '../../checkpoint/files/file-access.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';

/** @throws ERR_FILE_NOT_FOUND · ERR_PATH */
export function statOf(op: string, file: string): fs.Stats {
  try {
    return fs.statSync(file);
  } catch (error) {
    throw fileError(op, file, error);
  }
}

/**
 * Overwrites nothing, and IN least of all.
 * @param why a reason behind "a new file", with a space before it
 * @throws ERR_PATH
 */
export function requireNewFile(op: string, source: string, target: string, why = ''): void {
  const stat = fs.lstatSync(target, { throwIfNoEntry: false });
  if (stat === undefined) return;
  const followed = fs.statSync(target, { throwIfNoEntry: false });
  const { dev, ino } = statOf(op, source);
  const isSource = followed?.dev === dev && followed.ino === ino;
  const other = followed?.isDirectory() ? 'a folder' : 'a file that exists';
  const text = `${op}: ${printable(target)} must be a new file${why}, got ${isSource ? 'IN itself' : other}. Choose another name`;
  throw new LowrankError('ERR_PATH', text, { op });
}

/** @throws ERR_PATH */
export function requireNewFolder(op: string, target: string): void {
  const stat = fs.statSync(target, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (stat.isDirectory() && fs.readdirSync(target).length === 0) return;
  const got = stat.isDirectory() ? 'a folder with files in it' : 'a file';
  const text = `${op}: ${printable(target)} must be a new or empty folder, got ${got}. Choose another name`;
  throw new LowrankError('ERR_PATH', text, { op });
}
