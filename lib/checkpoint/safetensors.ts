/**
 * Reads safetensors files, whole or tensor by tensor. Files are treated as hostile: a malformed one
 * gives one typed error, and time and memory stay below a small multiple of the file's size.
 *
 * All functions are synchronous. A tensor's bytes are copied once, into separate memory.
 */

import { LowrankError, notConstructed, wrongType } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { checkName, checkPath } from './arguments.js';
import {
  type FileIdentity,
  type OpenFile,
  type OpenOptions,
  withFile,
} from './files/file-access.js';
import { hasPickleContent, pickleRefused, refusePickleName } from './pickle-refusal.js';
import { type RawDType, type RawTensor, rawView } from './raw-tensor.js';
import {
  checkLimits,
  type HeaderEntry,
  type HeaderLimits,
  headerByteLength,
  malformedFile,
  parseHeader,
  type SafetensorsHeader,
} from './safetensors-header.js';

export { encodeSafetensors, writeSafetensors } from './safetensors-write.js';

/** The properties of a tensor, without its data. */
export interface RawTensorInfo {
  readonly dtype: RawDType;
  readonly shape: readonly number[];
  readonly byteLength: number;
}

/** Options of {@link readSafetensors}. */
export interface ReadSafetensorsOptions extends HeaderLimits {
  /** Read only these tensors; each must exist in the file. Default: all. */
  readonly names?: Iterable<string>;
}

/** The content of a safetensors file. */
export interface SafetensorsContent {
  /** In file order. A Map, so that a tensor named `__proto__` is an ordinary tensor. */
  readonly tensors: Map<string, RawTensor>;
  readonly metadata: Map<string, string>;
}

const kReadOp = 'readSafetensors';
const kOpenOp = 'openSafetensors';
const kHeadBytes = 64;

/**
 * Reads a safetensors file, or one that is in memory already.
 *
 * @param source a path, or the bytes of the whole file
 * @param options which tensors, and the header limit (25 MB by default)
 * @returns tensors in separate memory, and the `__metadata__` texts
 * @throws `ERR_TYPE` · LowrankError `ERR_FILE` if malformed · `ERR_FILE_NOT_FOUND` · `ERR_FILE_CHANGED` if it
 * was written to during the read · `ERR_PATH` if it is not a regular file · `ERR_PICKLE_REFUSED` · `ERR_OOM`
 * @example
 * const { tensors } = readSafetensors('model.safetensors', { names: ['lm_head.weight'] });
 */
export function readSafetensors(
  source: string | Uint8Array,
  options: ReadSafetensorsOptions = {},
): SafetensorsContent {
  checkLimits(kReadOp, options);
  const names = namesOf(options.names);
  if (typeof source !== 'string') return readFromBytes(source, names, options);
  refusePickleName(kReadOp, source);
  return withFile(kReadOp, source, {}, (file) => {
    const header = readHeader(kReadOp, file, options);
    const tensors = new Map<string, RawTensor>();
    for (const entry of select(kReadOp, source, header, names)) {
      const bytes = file.read(
        header.data_start_bytes + entry.begin_bytes,
        entry.end_bytes - entry.begin_bytes,
      );
      tensors.set(entry.name, toTensor(entry, bytes));
    }
    return { tensors, metadata: new Map(header.metadata) };
  });
}

/**
 * Opens a safetensors file to read it tensor by tensor; only the header is read now.
 *
 * No file descriptor stays open: each read opens the file, requires that it is still the same one,
 * and closes it. So there is nothing to dispose, and a model of 10,000 shards needs one descriptor.
 *
 * @param path a path
 * @throws LowrankError as {@link readSafetensors}
 * @example
 * const file = openSafetensors('model.safetensors');
 * for (const name of file.names()) console.log(name, file.info(name)?.shape);
 */
export function openSafetensors(
  path: string,
  options: HeaderLimits & OpenOptions = {},
): SafetensorsFile {
  checkPath(kOpenOp, 'path', path);
  checkLimits(kOpenOp, options);
  refusePickleName(kOpenOp, path);
  return withFile(kOpenOp, path, options, (file) => {
    const header = readHeader(kOpenOp, file, options);
    return new SafetensorsFile(path, header, file.identity, options.noFollow === true);
  });
}

/**
 * A safetensors file with a checked header. Tensors are read one by one.
 * @example
 * const file = openSafetensors('model.safetensors');
 * for (const name of file.names()) console.log(name, file.info(name)?.shape);
 */
export class SafetensorsFile {
  private readonly entries: ReadonlyMap<string, HeaderEntry>;

  /** @internal use {@link openSafetensors} */
  constructor(
    readonly path: string,
    private readonly header: SafetensorsHeader,
    private readonly identity: FileIdentity,
    private readonly noFollow: boolean,
  ) {
    if (!Array.isArray(header?.entries)) throw notConstructed('SafetensorsFile', 'openSafetensors');
    this.entries = new Map(header.entries.map((entry) => [entry.name, entry]));
  }

  /** Size of the whole file in bytes. */
  get byteLength(): number {
    return this.identity.size_bytes;
  }

  get metadata(): ReadonlyMap<string, string> {
    return this.header.metadata;
  }

  /** Tensor names in file order. */
  names(): string[] {
    return [...this.entries.keys()];
  }

  has(name: string): boolean {
    return this.entries.has(name);
  }

  /** The properties of a tensor, or `undefined` if the file has none of that name. */
  info(name: string): RawTensorInfo | undefined {
    const entry = this.entries.get(name);
    if (entry === undefined) return undefined;
    const { dtype, shape, begin_bytes, end_bytes } = entry;
    return { dtype, shape, byteLength: end_bytes - begin_bytes };
  }

  /**
   * Reads one tensor.
   *
   * @returns the tensor in separate memory
   * @throws LowrankError `ERR_FILE` if there is no such tensor · `ERR_FILE_CHANGED` if the file is
   * not the one that was opened · `ERR_OOM`
   */
  read(name: string): RawTensor {
    checkName(kOpenOp, 'name', name);
    const entry = this.entries.get(name);
    if (entry === undefined) throw noSuchTensor(kOpenOp, this.path, name);
    const options = { expected: this.identity, noFollow: this.noFollow };
    return withFile(kOpenOp, this.path, options, (file) => {
      const begin_bytes = this.header.data_start_bytes + entry.begin_bytes;
      return toTensor(entry, file.read(begin_bytes, entry.end_bytes - entry.begin_bytes));
    });
  }
}

function readHeader(op: string, file: OpenFile, limits: HeaderLimits): SafetensorsHeader {
  const { size_bytes } = file.identity;
  const malformed = malformedFile(op, file.path);
  const head = file.read(0, Math.min(kHeadBytes, size_bytes));
  refusePickleContent(op, file.path, head);
  const length = headerByteLength(head.subarray(0, 8), size_bytes, limits, malformed);
  return parseHeader(file.read(8, length), size_bytes, malformed);
}

function readFromBytes(
  source: unknown,
  names: readonly string[] | undefined,
  limits: HeaderLimits,
): SafetensorsContent {
  const what = '(bytes)';
  if (!(source instanceof Uint8Array)) {
    throw wrongType(kReadOp, 'source', 'a path or a Uint8Array', source);
  }
  const malformed = malformedFile(kReadOp, what);
  refusePickleContent(kReadOp, what, source.subarray(0, kHeadBytes));
  const length = headerByteLength(source.subarray(0, 8), source.byteLength, limits, malformed);
  const header = parseHeader(source.subarray(8, 8 + length), source.byteLength, malformed);
  const tensors = new Map<string, RawTensor>();
  for (const entry of select(kReadOp, what, header, names)) {
    const begin_bytes = header.data_start_bytes + entry.begin_bytes;
    const bytes = new Uint8Array(entry.end_bytes - entry.begin_bytes);
    bytes.set(source.subarray(begin_bytes, begin_bytes + bytes.length));
    tensors.set(entry.name, toTensor(entry, bytes));
  }
  return { tensors, metadata: new Map(header.metadata) };
}

/** The wanted names, read once. @throws ERR_TYPE */
function namesOf(names: unknown): readonly string[] | undefined {
  if (names === undefined) return undefined;
  const given = names as Partial<Iterable<unknown>> | null;
  if (typeof names === 'string' || typeof given?.[Symbol.iterator] !== 'function') {
    throw wrongType(kReadOp, 'names', 'an array of names', names);
  }
  return Array.from(given as Iterable<unknown>, (name, i) => {
    checkName(kReadOp, `names[${i}]`, name);
    return name;
  });
}

/** The wanted entries in file order. */
function select(
  op: string,
  path: string,
  header: SafetensorsHeader,
  names: readonly string[] | undefined,
): readonly HeaderEntry[] {
  if (names === undefined) return header.entries;
  const wanted = new Set(names);
  const found = header.entries.filter((entry) => wanted.delete(entry.name));
  for (const missing of wanted) throw noSuchTensor(op, path, missing);
  return found;
}

function noSuchTensor(op: string, path: string, name: string): LowrankError {
  const text = `${op}: ${printable(path)} must hold tensor ${printable(name)}, got no such name`;
  return new LowrankError('ERR_FILE', text, { op });
}

function toTensor(entry: HeaderEntry, bytes: Uint8Array<ArrayBuffer>): RawTensor {
  return { dtype: entry.dtype, shape: entry.shape, data: rawView(entry.dtype, bytes) };
}

/** A header that starts with "{" is parsed, even if its length bytes look like a pickle. */
function refusePickleContent(op: string, path: string, head: Uint8Array): void {
  if (head[8] !== 0x7b && hasPickleContent(head)) {
    throw pickleRefused(op, path, 'by its first bytes');
  }
}
