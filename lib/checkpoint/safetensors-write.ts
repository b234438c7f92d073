/**
 * Writes safetensors files. The same tensors give the same bytes, and these are the bytes that the
 * reference implementation writes (largest alignment first, then by name; header padded with spaces
 * to a multiple of 8 bytes).
 */

import { fail } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { checkObject, checkPath } from './arguments.js';
import { writeFileAtomic } from './files/atomic-write.js';
import { bytesOf, checkRawTensor, layoutRank, type RawTensor } from './raw-tensor.js';

/** Tensors by name, in any order; use a Map if a name may be `__proto__`. */
export type RawTensors = ReadonlyMap<string, RawTensor> | Readonly<Record<string, RawTensor>>;
/** `__metadata__` texts by key. */
export type RawMetadata = ReadonlyMap<string, string> | Readonly<Record<string, string>>;

/**
 * The bytes of a safetensors file.
 *
 * @param tensors names -> tensors
 * @param metadata texts for `__metadata__`; PyTorch's loaders need `{ format: 'pt' }`. Default: none
 * @returns the whole file in memory
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE`, `ERR_SHAPE`, `ERR_VALUE` (a name or text that cannot be written)
 * @example
 * const file = encodeSafetensors({ w: { dtype: 'F32', shape: [1], data: new Float32Array([1]) } });
 */
export function encodeSafetensors(
  tensors: RawTensors,
  metadata?: RawMetadata,
): Uint8Array<ArrayBuffer> {
  const chunks = layOut('encodeSafetensors', tensors, metadata);
  const file = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    file.set(chunk, at);
    at += chunk.length;
  }
  return file;
}

/**
 * Writes a safetensors file atomically: temporary sibling, flush, rename.
 *
 * @param path final path; its folder must exist
 * @param tensors names -> tensors
 * @param metadata texts for `__metadata__`; default: none
 * @throws LowrankError as {@link encodeSafetensors}, and `ERR_DISK_FULL`, `ERR_PATH`,
 *   `ERR_FILE_NOT_FOUND`
 * @example
 * writeSafetensors('adapter_model.safetensors', tensors, { format: 'pt' });
 */
export function writeSafetensors(path: string, tensors: RawTensors, metadata?: RawMetadata): void {
  const op = 'writeSafetensors';
  checkPath(op, 'path', path);
  writeFileAtomic(op, path, layOut(op, tensors, metadata));
}

/** Length bytes and header in one chunk, then each tensor's bytes without a copy. */
function layOut(op: string, tensors: RawTensors, metadata: RawMetadata | undefined): Uint8Array[] {
  checkObject(op, 'tensors', tensors, 'a Map or an object of tensors by name');
  if (metadata !== undefined) {
    checkObject(op, 'metadata', metadata, 'a Map or an object of texts');
  }
  const sorted = entriesOf(tensors);
  for (const [name, tensor] of sorted) {
    checkText(op, 'a tensor name', name);
    if (name === '__metadata__') {
      fail('ERR_VALUE', op, 'a tensor name', 'any name but __metadata__', printable(name));
    }
    checkRawTensor(op, `tensor ${printable(name)}`, tensor);
  }
  sorted.sort(
    ([nameA, a], [nameB, b]) =>
      layoutRank(a.dtype) - layoutRank(b.dtype) || compareUtf8(nameA, nameB),
  );
  const members: string[] = [];
  if (metadata !== undefined) {
    const texts = entriesOf(metadata).map(([key, text]) => {
      checkText(op, 'a metadata key', key);
      checkText(op, `metadata ${printable(key)}`, text);
      return `${JSON.stringify(key)}:${JSON.stringify(text)}`;
    });
    members.push(`"__metadata__":{${texts.join(',')}}`);
  }
  let end_bytes = 0;
  for (const [name, { dtype, shape, data }] of sorted) {
    const begin_bytes = end_bytes;
    end_bytes += data.byteLength;
    members.push(
      `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(',')}],` +
        `"data_offsets":[${begin_bytes},${end_bytes}]}`,
    );
  }
  const json = new TextEncoder().encode(`{${members.join(',')}}`);
  // Data then starts at a multiple of 8 bytes, which zero-copy readers need.
  const head = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(head.length - 8), true);
  head.set(json, 8);
  return [head, ...sorted.map(([, tensor]) => bytesOf(tensor.data))];
}

export function entriesOf<T>(
  map: ReadonlyMap<string, T> | Readonly<Record<string, T>>,
): [string, T][] {
  return map instanceof Map
    ? [...(map as ReadonlyMap<string, T>)]
    : Object.entries(map as Readonly<Record<string, T>>);
}

export function checkText(op: string, operand: string, text: unknown): asserts text is string {
  if (typeof text !== 'string') fail('ERR_VALUE', op, operand, 'a string', typeof text);
  if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text)) {
    fail('ERR_VALUE', op, operand, 'well-formed Unicode', printable(text));
  }
}

/** Order by UTF-8 bytes, which is the order by code points, not JavaScript's order by UTF-16 units. */
function compareUtf8(a: string, b: string): number {
  if (a === b) return 0;
  let at = 0;
  while (at < a.length && a.charCodeAt(at) === b.charCodeAt(at)) at++;
  // Step back to the start of a surrogate pair if the first halves are equal.
  const low = a.charCodeAt(at) & 0xfc00;
  if (at > 0 && (low === 0xdc00 || (b.charCodeAt(at) & 0xfc00) === 0xdc00)) at--;
  return (a.codePointAt(at) ?? -1) - (b.codePointAt(at) ?? -1);
}
