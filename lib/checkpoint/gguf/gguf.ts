/**
 * Reads GGUF files, the format of llama.cpp. Files are treated as hostile: a malformed one gives one typed error, and time
 * and memory stay below a small multiple of the header's size.
 *
 * All functions are synchronous. A tensor's bytes are copied once, into separate memory.
 */

import { fail, LowrankError, notConstructed, wrongType } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { checkName } from '../arguments.js';
import { type FileIdentity, withFile } from '../files/file-access.js';
import { rawToFloat32 } from '../raw-tensor.js';
import { checkLimits } from '../safetensors-header.js';
import type { GgufType } from './block-types.js';
import { type GgufEntry, type GgufHeader, readGgufHeader } from './header.js';
import type { GgufValue } from './values.js';

/** Options of {@link openGguf}. */
export interface OpenGgufOptions {
  /** Longest header in bytes, vocabulary included; default 64 MiB. */
  readonly maxHeaderBytes?: number;
}

/** The properties of a GGUF tensor, without its data. */
export interface GgufTensorInfo {
  readonly type: GgufType;
  /** Row-major: [N, K] for a linear layer. The file has the dimensions in the other order. */
  readonly shape: readonly number[];
  /** Where its bytes begin in the file. */
  readonly begin: number;
  readonly byteLength: number;
}

/**
 * A tensor as a GGUF file holds it: the bytes of its blocks, row by row. `GGUF_TYPES` says how many bytes hold how many
 * elements.
 * @example
 * const tensor: GgufTensor = { type: 'F32', shape: [2], data: new Uint8Array(8) };
 */
export interface GgufTensor {
  readonly type: GgufType;
  readonly shape: readonly number[];
  readonly data: Uint8Array<ArrayBuffer>;
}

const kOp = 'openGguf';

/** Where the bytes of tensors come from. */
interface TensorBytes {
  readonly path: string;
  readonly size_bytes: number;
  read(begin_bytes: number, length_bytes: number): Uint8Array<ArrayBuffer>;
}

/**
 * Opens a GGUF file of version 2 or 3 to read it tensor by tensor; only the header is read now.
 *
 * No file descriptor stays open: each read opens the file, requires that it is still the same one, and closes it.
 *
 * @param source a path, or the bytes of a whole file
 * @throws `ERR_TYPE` · LowrankError `ERR_FILE` if malformed · `ERR_UNSUPPORTED` for version 1, a big-endian file, or a
 *   tensor of a type that is not read (IQ1 to IQ3, TQ1_0, ...) · `ERR_FILE_NOT_FOUND` · `ERR_FILE_CHANGED` · `ERR_PATH` if
 *   it is not a regular file · `ERR_OOM`
 * @example
 * const file = openGguf('model.gguf');
 * console.log(file.metadata.get('general.architecture')?.value);
 * for (const name of file.names()) console.log(name, file.info(name)?.type, file.info(name)?.shape);
 */
export function openGguf(source: string | Uint8Array, options: OpenGgufOptions = {}): GgufFile {
  checkLimits(kOp, options);
  if (typeof source === 'string') {
    return withFile(kOp, source, {}, (file) => {
      const bytes = fileBytes(source, file.identity);
      const { size_bytes } = file.identity;
      const opened = { size_bytes, read: file.read.bind(file) };
      return new GgufFile(bytes, readGgufHeader(kOp, source, opened, options.maxHeaderBytes));
    });
  }
  const given: unknown = source;
  if (!(given instanceof Uint8Array)) {
    throw wrongType(kOp, 'source', 'a path or a Uint8Array', given);
  }
  const bytes = memoryBytes(given);
  return new GgufFile(bytes, readGgufHeader(kOp, bytes.path, bytes, options.maxHeaderBytes));
}

const fileBytes = (path: string, expected: FileIdentity): TensorBytes => ({
  path,
  size_bytes: expected.size_bytes,
  read: (begin, length) => withFile(kOp, path, { expected }, (file) => file.read(begin, length)),
});

const memoryBytes = (bytes: Uint8Array): TensorBytes => ({
  path: '(bytes)',
  size_bytes: bytes.length,
  read: (begin, length) => {
    const copy = new Uint8Array(length);
    copy.set(bytes.subarray(begin, begin + length));
    return copy;
  },
});

/**
 * A GGUF file with a checked header. Tensors are read one by one.
 * @example
 * const file = openGguf('model.gguf');
 * const norm = ggufToFloat32(file.read('output_norm.weight'));
 */
export class GgufFile {
  private readonly entries: ReadonlyMap<string, GgufEntry>;

  /** @internal use {@link openGguf} */
  constructor(
    private readonly bytes: TensorBytes,
    private readonly header: GgufHeader,
  ) {
    if (!Array.isArray(header?.entries)) throw notConstructed('GgufFile', kOp);
    this.entries = new Map(header.entries.map((entry) => [entry.name, entry]));
  }

  get path(): string {
    return this.bytes.path;
  }

  /** Size of the whole file in bytes. */
  get byteLength(): number {
    return this.bytes.size_bytes;
  }

  get version(): 2 | 3 {
    return this.header.version;
  }

  /** Every tensor begins at a multiple of this many bytes of the data. */
  get alignment(): number {
    return this.header.alignment;
  }

  /** Values by key, in file order, each with its type in the file. */
  get metadata(): ReadonlyMap<string, GgufValue> {
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
  info(name: string): GgufTensorInfo | undefined {
    const entry = this.entries.get(name);
    if (entry === undefined) return undefined;
    const { type, shape, begin_bytes, length_bytes } = entry;
    return { type, shape, begin: begin_bytes, byteLength: length_bytes };
  }

  /**
   * Reads one tensor.
   *
   * @returns the bytes of its blocks, in separate memory
   * @throws LowrankError `ERR_FILE` if there is no such tensor · `ERR_FILE_CHANGED` if the file is not the one that was
   *   opened · `ERR_OOM`
   */
  read(name: string): GgufTensor {
    checkName(kOp, 'name', name);
    const entry = this.entries.get(name);
    if (entry === undefined) {
      const text = `must hold tensor ${printable(name)}, got no such name`;
      throw new LowrankError('ERR_FILE', `${kOp}: ${printable(this.path)} ${text}`, { op: kOp });
    }
    const { type, shape, begin_bytes, length_bytes } = entry;
    return { type, shape, data: this.bytes.read(begin_bytes, length_bytes) };
  }

  /**
   * All tensors for `writeGguf`, in file order. Each is read when it is written, so that a file of any size can be written
   * back with other metadata.
   */
  tensors(): Map<string, Omit<GgufTensor, 'data'> & { readonly data: () => Uint8Array }> {
    return new Map(
      this.header.entries.map(({ name, type, shape }) => [
        name,
        { type, shape, data: () => this.read(name).data },
      ]),
    );
  }
}

/**
 * The values of a floating point tensor as f32: `F32` bit for bit, `F16` and `BF16` exactly. The blocks of quantised types
 * stay bytes here.
 *
 * @returns a new Float32Array, row-major
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE` for any other type · `ERR_SHAPE` if the data does not fit the shape
 * @example
 * const norm = ggufToFloat32(openGguf('model.gguf').read('output_norm.weight'));
 */
export function ggufToFloat32(tensor: GgufTensor): Float32Array<ArrayBuffer> {
  const { type, shape, data } = tensor;
  if (type !== 'F32' && type !== 'F16' && type !== 'BF16') {
    fail('ERR_DTYPE', 'ggufToFloat32', 'tensor', 'F32, F16 or BF16', String(type));
  }
  return rawToFloat32({ dtype: type, shape, data });
}
