/**
 * Reads files that may be hostile or may change during the read.
 *
 * Bytes are read with `pread` into separate memory, never mapped: a mapped file that is truncated
 * kills the process with SIGBUS, which JavaScript cannot catch. The identity of a file (device,
 * inode, size, modification time) is recorded when it is opened and compared after every read.
 */

// The default import is one mutable object, so tests can inject faults into single calls.
import fs from 'node:fs';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';

/** Properties that must not change between opening a file and the last read from it. */
export interface FileIdentity {
  readonly device: bigint;
  readonly inode: bigint;
  readonly size_bytes: number;
  readonly modified_ns: bigint;
}

/** How a path was given; see paths.ts. */
export interface OpenOptions {
  /** Reject a symbolic link as the last component, for paths that are already resolved. */
  readonly noFollow?: boolean;
}

/** Largest single read: below the 2^31 - 1 limit of the system call. */
const kMaxReadBytes = 1 << 30;

/** Turns an error of node:fs into a LowrankError that says what to do. */
export function fileError(op: string, path: string, error: unknown): LowrankError {
  if (error instanceof LowrankError) return error;
  const code = (error as NodeJS.ErrnoException | null)?.code ?? 'unknown error';
  const shown = printable(path);
  const build = (kind: LowrankError['code'], text: string) =>
    new LowrankError(kind, `${op}: ${shown} ${text} (${code})`, { op, cause: error });
  switch (code) {
    case 'ENOENT':
      return build('ERR_FILE_NOT_FOUND', 'must exist, got nothing there');
    case 'ENOTDIR':
      return build('ERR_FILE_NOT_FOUND', 'must exist, got a path that goes through a file');
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return build('ERR_DISK_FULL', 'must have room, got a full disk or a file size limit');
    case 'ELOOP':
      return build('ERR_PATH', 'must not be a symbolic link or a loop of them here');
    case 'EISDIR':
      return build('ERR_PATH', 'must be a regular file, got a folder');
    case 'ENXIO':
      return build('ERR_PATH', 'must be a regular file, got a socket or device');
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return build('ERR_PATH', 'must be accessible, got no permission');
    case 'ENAMETOOLONG':
    case 'ERR_INVALID_ARG_VALUE':
      return build('ERR_PATH', 'must be a valid path');
    default:
      return build('ERR_FILE', 'could not be read or written');
  }
}

/** An open regular file. Its owner closes it. */
export class OpenFile {
  private constructor(
    private readonly op: string,
    readonly path: string,
    private readonly fd: number,
    readonly identity: FileIdentity,
  ) {}

  /**
   * Opens a regular file for reading. Rejects a FIFO, device, socket or folder without blocking.
   *
   * @throws LowrankError `ERR_FILE_NOT_FOUND`, `ERR_PATH`
   */
  static open(op: string, path: string, options: OpenOptions = {}): OpenFile {
    const { O_RDONLY, O_NONBLOCK, O_NOFOLLOW } = fs.constants;
    let fd: number | undefined;
    try {
      // Checked before opening too: merely opening a device can have effects.
      requireRegular(op, path, fs.statSync(path));
      // Without O_NONBLOCK, opening a FIFO that appeared in the meantime would wait for a writer.
      const noFollow = options.noFollow === true ? O_NOFOLLOW : 0;
      fd = fs.openSync(path, O_RDONLY | O_NONBLOCK | noFollow);
      const stat = fs.fstatSync(fd, { bigint: true });
      requireRegular(op, path, stat);
      return new OpenFile(op, path, fd, identityOf(stat));
    } catch (error) {
      if (fd !== undefined) fs.closeSync(fd);
      throw fileError(op, path, error);
    }
  }

  /**
   * Reads `length_bytes` bytes at `position_bytes` into new memory.
   *
   * @throws LowrankError `ERR_FILE_CHANGED` if the file became shorter, `ERR_OOM`
   */
  read(position_bytes: number, length_bytes: number): Uint8Array<ArrayBuffer> {
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = new Uint8Array(length_bytes);
    } catch (error) {
      const text = `${this.op}: ${printable(this.path)} needs ${length_bytes} bytes of memory`;
      throw new LowrankError('ERR_OOM', text, { op: this.op, cause: error });
    }
    let done = 0;
    while (done < length_bytes) {
      const wanted = Math.min(length_bytes - done, kMaxReadBytes);
      let got: number;
      try {
        got = fs.readSync(this.fd, bytes, done, wanted, position_bytes + done);
      } catch (error) {
        throw fileError(this.op, this.path, error);
      }
      if (got === 0) throw fileChanged(this.op, this.path, 'it became shorter');
      done += got;
    }
    return bytes;
  }

  /**
   * Requires that the open file is unchanged, and that the path still leads to it.
   * @throws LowrankError `ERR_FILE_CHANGED`
   */
  verifyUnchanged(): void {
    let now: FileIdentity;
    let behindPath: FileIdentity;
    try {
      now = identityOf(fs.fstatSync(this.fd, { bigint: true }));
      behindPath = identityOf(fs.statSync(this.path, { bigint: true }));
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'ENOENT') throw fileChanged(this.op, this.path, 'it was removed');
      throw fileError(this.op, this.path, error);
    }
    requireSame(this.op, this.path, this.identity, now);
    requireSame(this.op, this.path, this.identity, behindPath);
  }

  close(): void {
    fs.closeSync(this.fd);
  }
}

/**
 * Opens a file, passes it to `body` and closes it.
 * @param expected the file that must be there; otherwise throws `ERR_FILE_CHANGED`
 */
export function withFile<T>(
  op: string,
  path: string,
  options: OpenOptions & { readonly expected?: FileIdentity },
  body: (file: OpenFile) => T,
): T {
  const { expected } = options;
  let file: OpenFile;
  try {
    file = OpenFile.open(op, path, options);
  } catch (error) {
    const gone = (error as LowrankError).code === 'ERR_FILE_NOT_FOUND';
    if (expected !== undefined && gone) throw fileChanged(op, path, 'it was removed');
    throw error;
  }
  try {
    if (expected !== undefined) requireSame(op, path, expected, file.identity);
    const result = body(file);
    file.verifyUnchanged();
    return result;
  } finally {
    file.close();
  }
}

/**
 * Reads a whole small file, such as a JSON config.
 *
 * @param max_bytes larger files are rejected before any memory is allocated
 * @throws LowrankError `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_FILE_CHANGED`, `ERR_PATH`
 */
export function readSmallFile(
  op: string,
  path: string,
  max_bytes: number,
  options: OpenOptions = {},
): Uint8Array<ArrayBuffer> {
  return withFile(op, path, options, (file) => {
    const { size_bytes } = file.identity;
    if (size_bytes > max_bytes) {
      const text = `${op}: ${printable(path)} must be at most ${max_bytes} bytes, got ${size_bytes}`;
      throw new LowrankError('ERR_FILE', text, { op });
    }
    return file.read(0, size_bytes);
  });
}

function fileChanged(op: string, path: string, what: string): LowrankError {
  const text = `${op}: ${printable(path)} must not change while it is read, but ${what}`;
  return new LowrankError('ERR_FILE_CHANGED', `${text}. Read it again once nobody writes to it.`, {
    op,
  });
}

function requireSame(op: string, path: string, was: FileIdentity, now: FileIdentity): void {
  if (was.device !== now.device || was.inode !== now.inode) {
    throw fileChanged(op, path, 'another file took its place');
  }
  if (was.size_bytes !== now.size_bytes) {
    throw fileChanged(op, path, `its size went from ${was.size_bytes} to ${now.size_bytes} bytes`);
  }
  if (was.modified_ns !== now.modified_ns) throw fileChanged(op, path, 'it was written to');
}

function identityOf(stat: fs.BigIntStats): FileIdentity {
  return {
    device: stat.dev,
    inode: stat.ino,
    size_bytes: Number(stat.size),
    modified_ns: stat.mtimeNs,
  };
}

/**
 * For files that other code opens, such as a module to import: opening a FIFO waits for a writer.
 * @throws LowrankError `ERR_PATH` for a FIFO, device, socket or folder
 */
export function requireRegular(op: string, path: string, stat: fs.Stats | fs.BigIntStats): void {
  if (stat.isFile()) return;
  const kind = stat.isDirectory()
    ? 'a folder'
    : stat.isFIFO()
      ? 'a FIFO'
      : stat.isSocket()
        ? 'a socket'
        : 'a device';
  const text = `${op}: ${printable(path)} must be a regular file, got ${kind}`;
  throw new LowrankError('ERR_PATH', text, { op });
}
