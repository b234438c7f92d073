/**
 * Writes GGUF files. Keys and tensors keep the order in which they are given, so the same input gives the same bytes, and
 * what `openGguf` read is written back byte for byte.
 */

import { fail, shown, wrongType } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { checkObject, checkPath } from '../arguments.js';
import { writeFileAtomic } from '../files/atomic-write.js';
import { bytesOf, type RawData } from '../raw-tensor.js';
import { entriesOf } from '../safetensors-write.js';
import {
  checkGgufShape,
  GGUF_TYPES,
  type GgufType,
  ggufTypeNames,
  isGgufType,
} from './block-types.js';
import { HeaderBytes } from './header-bytes.js';
import {
  alignUp,
  type GgufValue,
  kAlignmentKey,
  kDefaultAlignment,
  kMaxNameBytes,
} from './values.js';
import { writeMetadata } from './write-values.js';

/** A tensor to write: its bytes, or a function that gives them when they are written. */
export interface GgufTensorSource {
  readonly type: GgufType;
  /** Row-major: [N, K] for a linear layer. */
  readonly shape: readonly number[];
  readonly data: RawData | (() => RawData);
}

/**
 * What a GGUF file holds, in the order of the file.
 * @example
 * const content: GgufContent = {
 *   metadata: { 'general.architecture': { type: 'string', value: 'llama' } },
 *   tensors: { 'output_norm.weight': { type: 'F32', shape: [2], data: new Float32Array([1, 2]) } },
 * };
 */
export interface GgufContent {
  /** Default: 3. Both versions have the same layout. */
  readonly version?: 2 | 3;
  /** Values by key. `general.alignment` (u32, default 32) also aligns the tensors. */
  readonly metadata: ReadonlyMap<string, GgufValue> | Readonly<Record<string, GgufValue>>;
  /** Tensors by name; use a Map if a name may be `__proto__`, or a number. */
  readonly tensors:
    | ReadonlyMap<string, GgufTensorSource>
    | Readonly<Record<string, GgufTensorSource>>;
}

/**
 * The bytes of a GGUF file.
 *
 * @returns the whole file in memory
 * @throws as {@link writeGguf}, without the errors of files
 * @example
 * const file = openGguf('model.gguf');
 * const bytes = encodeGguf({ metadata: file.metadata, tensors: file.tensors() });
 */
export function encodeGguf(content: GgufContent): Uint8Array<ArrayBuffer> {
  const { length_bytes, chunks } = layOut('encodeGguf', content);
  const file = new Uint8Array(length_bytes);
  let at = 0;
  for (const chunk of chunks()) {
    file.set(chunk, at);
    at += chunk.length;
  }
  return file;
}

/**
 * Writes a GGUF file atomically: temporary sibling, flush, rename. A tensor whose `data` is a function is asked for its
 * bytes when it is written, so that the file may be larger than the memory.
 *
 * A text that is not valid UTF-8 is given as its bytes. Padding is zero; the last tensor is padded as well, as llama.cpp
 * does. Rounding: a number of type f32 is rounded to f32. The payload of a NaN is not kept outside arrays.
 *
 * @param path final path; its folder must exist
 * @throws `ERR_TYPE` · LowrankError `ERR_VALUE` for a name, key or value that cannot be written · `ERR_DTYPE` for an unknown
 *   type or data that is no typed array · `ERR_SHAPE` if the shape does not divide into blocks, or the data does not fit
 *   it · `ERR_DISK_FULL`, `ERR_PATH`, `ERR_FILE_NOT_FOUND`
 * @example
 * const file = openGguf('model.gguf');
 * const metadata = new Map(file.metadata).set('general.name', { type: 'string', value: 'mine' });
 * writeGguf('named.gguf', { metadata, tensors: file.tensors() });
 */
export function writeGguf(path: string, content: GgufContent): void {
  const op = 'writeGguf';
  checkPath(op, 'path', path);
  writeFileAtomic(op, path, layOut(op, content).chunks());
}

interface Laid {
  readonly length_bytes: number;
  readonly chunks: () => Generator<Uint8Array>;
}

/** Checks everything but the data of functions, and writes the header. */
function layOut(op: string, content: GgufContent): Laid {
  checkObject(op, 'content', content, 'an object of metadata and tensors');
  const { version = 3, metadata, tensors } = content;
  if (version !== 2 && version !== 3) fail('ERR_VALUE', op, 'version', '2 or 3', shown(version));
  checkObject(op, 'metadata', metadata, 'a Map or an object of values by key');
  checkObject(op, 'tensors', tensors, 'a Map or an object of tensors by name');
  const keys = entriesOf(metadata);
  const named = entriesOf(tensors);
  const out = new HeaderBytes();
  out.bytes(new TextEncoder().encode('GGUF'));
  out.u32(version);
  out.u64(named.length);
  out.u64(keys.length);
  writeMetadata(op, out, keys);
  const given = new Map(keys).get(kAlignmentKey)?.value;
  const alignment = given === undefined ? kDefaultAlignment : (given as number);
  let offset_bytes = 0;
  const sizes = named.map(([name, tensor]) => {
    out.name(op, 'a tensor name', name, kMaxNameBytes);
    const length_bytes = checkTensor(op, `tensor ${printable(name)}`, tensor);
    const dims = [...tensor.shape].reverse();
    out.u32(dims.length);
    for (const dim of dims) out.u64(dim);
    out.u32(GGUF_TYPES[tensor.type].id);
    out.u64(offset_bytes);
    offset_bytes = alignUp(offset_bytes + length_bytes, alignment);
    return length_bytes;
  });
  const head = out.padded(alignUp(out.length, alignment));
  return {
    length_bytes: head.length + offset_bytes,
    chunks: function* () {
      yield head;
      for (const [index, [name, tensor]] of named.entries()) {
        const length_bytes = sizes[index] as number;
        yield dataOf(op, `tensor ${printable(name)}`, tensor, length_bytes);
        const padding_bytes = alignUp(length_bytes, alignment) - length_bytes;
        if (padding_bytes > 0) yield new Uint8Array(padding_bytes);
      }
    },
  };
}

/** Bytes of a tensor. @throws ERR_TYPE, ERR_DTYPE, ERR_SHAPE */
function checkTensor(op: string, what: string, tensor: GgufTensorSource): number {
  checkObject(op, what, tensor, 'a tensor of type, shape and data');
  const { type, shape, data } = tensor;
  if (!isGgufType(type)) {
    fail('ERR_DTYPE', op, `${what}.type`, `one of ${ggufTypeNames.join(', ')}`, shown(type));
  }
  if (!Array.isArray(shape)) throw wrongType(op, `${what}.shape`, 'an array of integers', shape);
  const length_bytes = checkGgufShape(op, `${what}.shape`, type, shape);
  if (typeof data !== 'function') dataOf(op, what, tensor, length_bytes);
  return length_bytes;
}

function dataOf(
  op: string,
  what: string,
  { type, shape, data }: GgufTensorSource,
  length_bytes: number,
): Uint8Array {
  const given: unknown = typeof data === 'function' ? data() : data;
  if (!ArrayBuffer.isView(given) || given instanceof DataView) {
    return fail('ERR_DTYPE', op, `${what}.data`, 'a typed array', shown(given));
  }
  const bytes = bytesOf(given as RawData);
  if (bytes.length !== length_bytes) {
    const expected = `${length_bytes} bytes for ${type}[${shape.join(', ')}]`;
    fail('ERR_SHAPE', op, `${what}.data`, expected, `${bytes.length} bytes`);
  }
  return bytes;
}
