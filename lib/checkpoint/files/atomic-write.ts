/**
 * Writes files and folders that appear under their final name complete, or not at all.
 *
 * Everything is written to a hidden sibling, flushed to the disk, and renamed. The containing folder is flushed
 * as well, so that the rename survives a power cut. On any failure the sibling is removed and the previous
 * content of the final name stays. If a process was killed, the next write to the same name removes its
 * leftovers: siblings are named after their process.
 */

import { randomBytes } from 'node:crypto';
// The default import is one mutable object, so tests can inject faults into single calls.
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
 * @param chunks the content, in order; an iterable, so that a large file need not fit in memory
 * @throws LowrankError `ERR_DISK_FULL` · `ERR_PATH` · `ERR_FILE_NOT_FOUND` if the folder does not
 * exist
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

/** Says which folders {@link replaceFolder} may replace. */
export interface ReplaceFolderOptions {
  /** A file whose presence marks a folder of this library, e.g. `adapter_config.json`. */
  readonly marker: string;
}

/**
 * Writes a folder of files atomically. An existing folder is replaced if it is empty or contains
 * `marker`. Files in it that the new one does not have are carried over.
 *
 * The old folder is renamed before the new one takes its name, because Node.js cannot exchange two names. Between
 * the two renames nothing has the final name, but it never holds a mixture. If the process dies exactly there, the
 * complete old folder is next to it as `.<name>.<process>.old`, and gets its name back when the folder is written
 * next.
 *
 * @param folder final path; its parent is created if necessary
 * @param files file name -> content
 * @throws LowrankError `ERR_PATH` if the folder exists and is not of this library · `ERR_DISK_FULL`
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

/** Does `target` exist? Throws if it must not be replaced. */
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

/** Moves the files that the new folder lacks, so that a README next to an adapter survives the next save. */
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

/** If the final name is a link, it stays one: its target is replaced. */
function followLink(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}

/**
 * Gives a folder that was written file by file its final name, after flushing its content to the disk.
 * @param target does not exist, or is an empty folder
 */
export function commitFolder(op: string, folder: string, target: string): void {
  try {
    for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
      // Windows flushes only files that are open for writing.
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

/** Starts with `.<name>.` and ends with twelve random digits after the mark of the process. */
export function siblingName(target: string): string {
  const suffix = `${processMark()}-${randomBytes(6).toString('hex')}`;
  return path.join(path.dirname(target), `${siblingPrefix(target)}${suffix}`);
}

const siblingPrefix = (target: string) => `.${path.basename(target).slice(0, 200)}.`;
const kSiblingSuffix = new RegExp(`^(${kMarkPattern})-[0-9a-f]{12}(\\.old)?$`);

/**
 * Removes what finished processes left next to a name, but nothing of a process that may still run. What cannot be
 * removed stays, which does no harm.
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

/**
 * Restores the folder that was being replaced when the process ended: all of it, or what the new
 * one was to take over.
 */
function putBack(old: string, target: string): void {
  if (fs.existsSync(target)) {
    carryOver(old, target);
    fs.rmSync(old, { recursive: true, force: true });
  } else {
    fs.renameSync(old, target);
  }
}

function syncFolder(folder: string): void {
  // Windows cannot open a folder, so the rename alone must suffice.
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
