/**
 * Allows one run at a time to write an output: `OUT.lock` next to it names the process that holds it. The lock of a
 * process that has ended, for whatever reason, is taken over.
 */

// The default import is one mutable object, so tests can inject faults into single calls.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { removeLeftovers, siblingName } from './atomic-write.js';
import { fileError } from './file-access.js';
import { mayRun, processMark } from './process-mark.js';

/** A lock that this process holds. */
export interface OutputLock {
  release(): void;
}

interface Holder {
  readonly mark: string;
  readonly pid: number;
  readonly host: string;
  readonly since: string;
}

/** After this time, other processes finish what a killed process may have left half-done. */
const kAbandoned_ms = 10_000;
const kPause_ms = 20;
const kAttempts = 1000;
/** The errors of file systems that do not support links. */
const kNoLinks = new Set(['EPERM', 'ENOSYS', 'ENOTSUP', 'EOPNOTSUPP', 'EMLINK']);

const lockFile = (target: string) => `${path.resolve(target)}.lock`;
const pause = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, kPause_ms);

/**
 * Takes the lock of an output. Its folder must exist.
 * @throws LowrankError `ERR_PATH` if another run has it; the message names that run ·
 * `ERR_DISK_FULL`
 */
export function lockOutput(op: string, target: string): OutputLock {
  const file = lockFile(target);
  const holder: Holder = {
    mark: processMark(),
    pid: process.pid,
    host: os.hostname(),
    since: new Date().toISOString(),
  };
  const own = `${JSON.stringify(holder)}\n`;
  removeLeftovers(file);
  try {
    for (let attempt = 0; attempt < kAttempts; attempt++) {
      if (create(file, own)) return held(file, own);
      const text = read(file);
      if (text === undefined) continue;
      if (!isStale(file, text)) throw refusal(op, target, text);
      remove(file, text);
    }
  } catch (error) {
    throw fileError(op, file, error);
  }
  throw refusal(op, target, read(file) ?? '');
}

/** @throws LowrankError `ERR_PATH` if a running process has the lock of this output */
export function requireUnlocked(op: string, target: string): void {
  const text = read(lockFile(target));
  if (text !== undefined && !isStale(lockFile(target), text)) throw refusal(op, target, text);
}

function held(file: string, own: string): OutputLock {
  const release = () => {
    process.off('exit', release);
    if (read(file) === own) fs.rmSync(file, { force: true });
  };
  process.on('exit', release);
  return { release };
}

/** Creates the file with its whole content; returns false if it exists. */
function create(file: string, content: string): boolean {
  const whole = siblingName(file);
  try {
    fs.writeFileSync(whole, content);
    fs.linkSync(whole, file);
    return true;
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return false;
    if (!kNoLinks.has(code)) throw error;
  } finally {
    fs.rmSync(whole, { force: true });
  }
  try {
    fs.writeFileSync(file, content, { flag: 'wx' });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    return false;
  }
}

function read(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function holderOf(text: string): Holder | undefined {
  try {
    const holder = JSON.parse(text) as Holder;
    return /^[0-9a-f]{8}-\d+-\d+$/.test(holder.mark) ? holder : undefined;
  } catch {
    return undefined;
  }
}

function isStale(file: string, text: string): boolean {
  const holder = holderOf(text);
  if (holder !== undefined) return !mayRun(holder.mark);
  // Without links the file may be incomplete: its process is still writing, or was killed while
  // writing.
  return isAbandoned(file);
}

function isAbandoned(file: string): boolean {
  const stat = fs.statSync(file, { throwIfNoEntry: false });
  return stat !== undefined && Date.now() - stat.mtimeMs > kAbandoned_ms;
}

/**
 * Removes a stale lock, unless another process has removed it and holds a new one. Only one process
 * removes at a time.
 */
function remove(file: string, stale: string): void {
  const turn = `${file}.takeover`;
  try {
    fs.mkdirSync(turn);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    if (isAbandoned(turn)) fs.rmSync(turn, { recursive: true, force: true });
    else pause();
    return;
  }
  try {
    if (read(file) === stale) fs.rmSync(file, { force: true });
  } finally {
    fs.rmSync(turn, { recursive: true, force: true });
  }
}

function refusal(op: string, target: string, text: string): LowrankError {
  const holder = holderOf(text);
  const who =
    holder === undefined
      ? 'another process'
      : `process ${holder.pid} on ${printable(String(holder.host))} since ${printable(String(holder.since))}`;
  const message =
    `${op}: ${printable(target)} must be written by one run at a time, got ${who} writing to it. ` +
    `Wait for it or choose another name; if it is gone, remove ${printable(lockFile(target))}`;
  return new LowrankError('ERR_PATH', message, { op });
}
