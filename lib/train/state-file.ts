/** The checkpoint of a run, with room on the disk for one more: no step is lost to a disk that fills up meanwhile. */

// The default import is one mutable object, so that tests can inject faults into single calls.
import fs from 'node:fs';
import { removeLeftovers, siblingName } from '../checkpoint/files/atomic-write.js';
import { fileError } from '../checkpoint/files/file-access.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { type LossHistory, type RunIdentity, saveRunState } from './run-state.js';
import type { Trainer } from './trainer.js';

/** Bytes that are written at a time. */
const kChunk_bytes = 1 << 20;
/** For the header: names, shapes, and what the run is. */
const kHeader_bytes = 256 << 10;

/**
 * Saves the state of one run. Until it is closed, a hidden file beside the checkpoint keeps as many bytes as a state
 * has; where the disk is full it goes, and the state takes its place.
 */
export class StateFile {
  private readonly reserve: string;

  /** @throws LowrankError `ERR_DISK_FULL` there is no room for a state: before anything was trained */
  constructor(
    private readonly op: string,
    readonly path: string,
    private readonly trainer: Trainer,
    private readonly identity: RunIdentity,
    private readonly history: LossHistory,
  ) {
    removeLeftovers(path);
    this.reserve = siblingName(path);
    const losses = trainer.options.steps * 8 * 3;
    const vectors = 3 * trainer.adapters.values.byteLength;
    this.keep(vectors + losses + kHeader_bytes + 2 * JSON.stringify(identity).length);
  }

  /**
   * Writes the state atomically.
   * @throws LowrankError `ERR_DISK_FULL`, and the message says whether the state was saved all the same · `ERR_PATH`
   */
  save(): void {
    try {
      saveRunState(this.path, this.trainer, this.identity, this.history);
    } catch (error) {
      throw this.rescue(error);
    }
  }

  /**
   * What to throw where an output could not be written: the error, after the state was saved in the room kept for it.
   */
  rescue(error: unknown): unknown {
    if (!(error instanceof LowrankError)) return error;
    this.close();
    try {
      saveRunState(this.path, this.trainer, this.identity, this.history);
    } catch {
      return error; // It says what is wrong with the disk.
    }
    const text =
      `${error.message}. All ${this.trainer.step} steps are in ${printable(this.path)}: make room, ` +
      'and run the same command with --resume to go on';
    return new LowrankError(error.code, text, { op: this.op, cause: error });
  }

  /** Gives the room back. */
  close(): void {
    fs.rmSync(this.reserve, { force: true });
  }

  /** Bytes of noise: a file system may store zeros in no room at all. */
  private keep(bytes: number): void {
    const chunk = new Uint8Array(Math.min(bytes, kChunk_bytes));
    let state = 1;
    for (let i = 0; i < chunk.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      chunk[i] = state >>> 24;
    }
    let fd: number | undefined;
    try {
      fd = fs.openSync(this.reserve, 'wx');
      for (let done = 0; done < bytes; ) {
        done += fs.writeSync(fd, chunk, 0, Math.min(chunk.length, bytes - done));
      }
    } catch (error) {
      this.close();
      throw fileError(this.op, this.path, error);
    } finally {
      if (fd !== undefined) fs.closeSync(fd);
    }
  }
}
