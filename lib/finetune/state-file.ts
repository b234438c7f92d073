/** The checkpoint of a run, with disk space reserved for one more: no step is lost if the disk fills up. */

// The default import is one mutable object, so tests can inject faults into single calls.
import fs from 'node:fs';
import { removeLeftovers, siblingName } from '../checkpoint/files/atomic-write.js';
import { fileError } from '../checkpoint/files/file-access.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { ModelTrainer } from '../train/model-trainer.js';
import { type LossHistory, type RunIdentity, saveRunState, stateBytes } from './run-state.js';

/** Bytes per write. */
const kChunk_bytes = 1 << 20;
/** Reserve for the header: names, shapes, and the identity of the run. */
const kHeader_bytes = 256 << 10;

/**
 * Saves the state of one run. Until it is closed, a hidden file next to the checkpoint reserves the size of a state.
 * If the disk is full, that file is removed and the state takes its space.
 */
export class StateFile {
  private readonly reserve: string;
  private reserved = 0;

  /** @throws LowrankError `ERR_DISK_FULL` if there is no room for a state, before anything was trained */
  constructor(
    private readonly op: string,
    readonly path: string,
    private readonly trainer: ModelTrainer,
    private readonly identity: RunIdentity,
    private readonly history: LossHistory,
  ) {
    removeLeftovers(path);
    this.reserve = siblingName(path);
    this.fit();
  }

  /**
   * Makes room for a state that has grown.
   * @throws LowrankError `ERR_DISK_FULL`; the state is saved then, if it fits into the room of the last one
   */
  fit(): void {
    const { trainer, identity } = this;
    const losses = trainer.options.steps * 8 * 3;
    const header = kHeader_bytes + 2 * JSON.stringify(identity).length;
    const bytes = stateBytes(trainer) + losses + header;
    if (bytes <= this.reserved) return;
    fs.rmSync(this.reserve, { force: true });
    const first = this.reserved === 0;
    this.reserved = bytes;
    try {
      this.keep(bytes);
    } catch (error) {
      throw first ? error : this.rescue(error);
    }
  }

  /**
   * Writes the state atomically.
   * @throws LowrankError `ERR_DISK_FULL`; the message says whether the state was saved nevertheless · `ERR_PATH`
   */
  save(): void {
    try {
      saveRunState(this.path, this.trainer, this.identity, this.history);
    } catch (error) {
      throw this.rescue(error);
    }
  }

  /**
   * The error to throw if an output could not be written, after saving the state in the reserved space.
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

  /** Releases the reserved space. */
  close(): void {
    fs.rmSync(this.reserve, { force: true });
  }

  /** Random bytes, because a file system may store zeros without using space. */
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
