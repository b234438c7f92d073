/**
 * Files and folders that appear under their final name whole, or not at all.
 *
 * Everything is written to a hidden sibling, flushed to the disk, and renamed; the containing folder
 * is flushed as well, so that the rename survives a power cut. On any failure the sibling is removed
 * and what stood under the final name is untouched. What a process that was killed left beside a name is removed
 * when the name is written next: siblings are named after their process.
 */

import { randomBytes } from 'node:crypto';
// The default import is one mutable object, so that tests can inject faults into single calls.
import fs from 'node:fs';
import path from 'node:path';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { fileError } from './file-access.js';
import { kMarkPattern, mayRun, processMark } from './process-mark.js';

/**
 * Writes a file atomically, replacing an older one.
 *
 * @param file final path; its folder must exist
 * @param chunks the content, in order; an iterable so that a large file need not be in memory at once
 * @throws LowrankError `ERR_DISK_FULL` · `ERR_PATH` · `ERR_FILE_NOT_FOUND` (no such folder)
 */
export function writeFileAtomic(op: string, file: string, chunks: Iterable<Uint8Array>): void {
  const target = followLink(file);
  const temp = siblingName(target);
  removeLeftovers(target);
  try {
    writeNewFile(temp, chunks);
    fs.renameSync(temp, target);
    syncFolder(path.dirname(target));
  } catch (error) {
    fs.rmSync(temp, { force: true });
    throw fileError(op, file, error);
  }
}

/** How {@link replaceFolder} recognises a folder that it may replace. */
export interface ReplaceFolderOptions {
  /** File whose presence marks a folder as one of ours, e.g. `adapter_config.json`. */
  readonly marker: string;
}

/**
 * Writes a folder of files atomically. An existing folder is replaced if it is empty or holds
 * `marker`; files in it that the new one does not have are carried over.
 *
 * The old folder is renamed aside before the new one takes its name (there is no exchange of two
 * names in Node.js), so between two renames nothing stands under the final name, but never a mixture.
 * If the process dies exactly there, the complete old folder is beside it as `.<name>.<process>.old`, and takes its
 * name again when the folder is written next.
 *
 * @param folder final path; its parent is created if need be
 * @param files file name -> content
 * @throws LowrankError `ERR_PATH` the folder exists and is not ours · `ERR_DISK_FULL`
 */
export function replaceFolder(
  op: string,
  folder: string,
  files: ReadonlyMap<string, Uint8Array>,
  options: ReplaceFolderOptions,
): void {
  const target = followLink(path.resolve(folder));
  const temp = siblingName(target);
  const old = `${temp}.old`;
  try {
    fs.mkdirSync(path.dirname(target), { recursive: true });
    removeLeftovers(target);
    const replaces = requireReplaceable(op, target, options.marker);
    fs.mkdirSync(temp);
    for (const [name, bytes] of files) writeNewFile(path.join(temp, name), [bytes]);
    syncFolder(temp);
    if (replaces) {
      fs.renameSync(target, old);
      try {
        fs.renameSync(temp, target);
      } catch (error) {
        fs.renameSync(old, target);
        throw error;
      }
      carryOver(old, target);
      fs.rmSync(old, { recursive: true, force: true });
    } else {
      fs.renameSync(temp, target);
    }
    syncFolder(path.dirname(target));
  } catch (error) {
    fs.rmSync(temp, { recursive: true, force: true });
    throw fileError(op, folder, error);
  }
}

/** Whether `target` exists; throws if it must not be replaced. */
function requireReplaceable(op: string, target: string, marker: string): boolean {
  const stat = fs.statSync(target, { throwIfNoEntry: false });
  if (stat === undefined) return false;
  const refuse = (expected: string, got: string) =>
    new LowrankError('ERR_PATH', `${op}: ${printable(target)} must be ${expected}, got ${got}`, {
      op,
    });
  if (!stat.isDirectory()) throw refuse('a folder', 'a file');
  const entries = fs.readdirSync(target);
  if (entries.length > 0 && !entries.includes(marker)) {
    throw refuse(
      `a new or empty folder, or one that holds ${marker}`,
      `a folder of ${entries.length} other entries. Choose another folder`,
    );
  }
  return true;
}

/** Moves what the new folder lacks, so that a README beside an adapter survives the next save. */
function carryOver(old: string, target: string): void {
  const present = new Set(fs.readdirSync(target));
  for (const name of fs.readdirSync(old)) {
    if (!present.has(name)) fs.renameSync(path.join(old, name), path.join(target, name));
  }
}

function writeNewFile(file: string, chunks: Iterable<Uint8Array>): void {
  const fd = fs.openSync(file, 'wx', 0o666);
  try {
    for (const chunk of chunks) {
      let done = 0;
      while (done < chunk.length) {
        done += fs.writeSync(fd, chunk, done, Math.min(chunk.length - done, 1 << 30));
      }
    }
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** A final name that is a link keeps being one: what it leads to is replaced. */
function followLink(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}

/**
 * Gives a folder that was written file by file its final name: its content is flushed to the disk first.
 * @param target nothing, or an empty folder
 */
export function commitFolder(op: string, folder: string, target: string): void {
  try {
    for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
      // Windows flushes only what may be written.
      const flags = process.platform === 'win32' ? 'r+' : 'r';
      if (entry.isFile()) sync(path.join(folder, entry.name), flags);
    }
    syncFolder(folder);
    if (fs.existsSync(target)) fs.rmdirSync(target);
    fs.renameSync(folder, target);
    syncFolder(path.dirname(target));
  } catch (error) {
    throw fileError(op, target, error);
  }
}

/** `.<name>.` before, and twelve random digits behind the mark of the process. */
export function siblingName(target: string): string {
  const suffix = `${processMark()}-${randomBytes(6).toString('hex')}`;
  return path.join(path.dirname(target), `${siblingPrefix(target)}${suffix}`);
}

const siblingPrefix = (target: string) => `.${path.basename(target).slice(0, 200)}.`;
const kSiblingSuffix = new RegExp(`^(${kMarkPattern})-[0-9a-f]{12}(\\.old)?$`);

/**
 * Removes what processes that have ended left beside a name, and nothing of one that may still run. What cannot be
 * removed stays: it hinders nobody.
 */
export function removeLeftovers(target: string): void {
  const [folder, prefix] = [path.dirname(target), siblingPrefix(target)];
  try {
    for (const name of fs.readdirSync(folder)) {
      const [, mark, old] = name.startsWith(prefix)
        ? (kSiblingSuffix.exec(name.slice(prefix.length)) ?? [])
        : [];
      if (mark === undefined || mayRun(mark)) continue;
      const left = path.join(folder, name);
      if (old === undefined) fs.rmSync(left, { recursive: true, force: true });
      else putBack(left, target);
    }
  } catch {
    // Left for the next time.
  }
}

/** The folder that was to be replaced when the process ended: whole, or what the new one was to take over of it. */
function putBack(old: string, target: string): void {
  if (fs.existsSync(target)) {
    carryOver(old, target);
    fs.rmSync(old, { recursive: true, force: true });
  } else {
    fs.renameSync(old, target);
  }
}

function syncFolder(folder: string): void {
  // Windows cannot open a folder; there the rename alone has to do.
  if (process.platform === 'win32') return;
  sync(folder, 'r');
}

function sync(file: string, flags: string): void {
  const fd = fs.openSync(file, flags);
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}
