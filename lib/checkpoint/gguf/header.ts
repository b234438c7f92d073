/**
 * The header of a GGUF file, versions 2 and 3, little-endian.
 *
 *   file     = "GGUF" · version (u32) · T (u64) · K (u64) · K × key · T × tensor · padding · data
 *   key      = text · type (u32) · value
 *   tensor   = text · rank (u32) · rank × dimension (u64, the fastest first) · type (u32) · offset (u64)
 *   data     = the tensors in this order, each padded to the alignment; offsets count from its start
 *
 * llama.cpp demands the same order and padding, so a file has no holes, and no two tensors share bytes.
 */

import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { type Malformed, malformedFile } from '../safetensors-header.js';
import {
  describeRefusedType,
  type GgufType,
  ggufByteLength,
  ggufTypeOf,
  kMaxDims,
} from './block-types.js';
import { type ByteSource, HeaderCursor } from './header-cursor.js';
import { readMetadata } from './read-values.js';
import {
  alignUp,
  type GgufValue,
  isAlignment,
  kAlignmentKey,
  kAlignments,
  kDefaultAlignment,
  kMaxNameBytes,
} from './values.js';

/** A tensor: its shape row-major, the slowest dimension first, and its bytes in the file. */
export interface GgufEntry {
  readonly name: string;
  readonly type: GgufType;
  readonly shape: readonly number[];
  readonly begin_bytes: number;
  readonly length_bytes: number;
}

/** A checked header. */
export interface GgufHeader {
  readonly version: 2 | 3;
  readonly alignment: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly entries: readonly GgufEntry[];
}

const kDefaultMaxHeaderBytes = 64 << 20;
const kMaxTensors = 200_000;
/** A name of a byte, no dimension, type and offset. */
const kLeastTensorBytes = 8 + 1 + 4 + 4 + 8;

/** First bytes of files of before GGUF. */
const kOldMagics: Readonly<Record<string, string>> = {
  lmgg: 'GGML',
  fmgg: 'GGMF',
  tjgg: 'GGJT',
  algg: 'GGLA',
};

/**
 * Reads and checks a header.
 * @throws LowrankError `ERR_FILE` · `ERR_UNSUPPORTED`
 */
export function readGgufHeader(
  op: string,
  path: string,
  source: ByteSource,
  maxHeaderBytes = kDefaultMaxHeaderBytes,
): GgufHeader {
  const malformed = malformedFile(op, path);
  const unsupported: Malformed = (what) => {
    throw new LowrankError('ERR_UNSUPPORTED', `${op}: ${printable(path)}: ${what}`, { op });
  };
  const cursor = new HeaderCursor(source, maxHeaderBytes, malformed);
  const version = readVersion(cursor, malformed, unsupported);
  const tensors = cursor.u64('number of tensors');
  const keys = cursor.u64('number of keys');
  const metadata = readMetadata(cursor, keys);
  const alignment = alignmentOf(metadata, malformed);
  const infos = readInfos(cursor, tensors, unsupported);
  const data_start_bytes = alignUp(cursor.at_bytes, alignment);
  const entries = layOut(infos, data_start_bytes, alignment, malformed);
  checkEnd(entries, cursor.at_bytes, alignment, source.size_bytes, malformed);
  return { version, alignment, metadata, entries };
}

function readVersion(cursor: HeaderCursor, malformed: Malformed, unsupported: Malformed): 2 | 3 {
  const magic = Buffer.from(cursor.take(4)).toString('latin1');
  const old = Object.hasOwn(kOldMagics, magic) ? kOldMagics[magic] : undefined;
  if (old !== undefined) {
    unsupported(`must be a GGUF file, got ${old}, of before GGUF. Take a GGUF file of this model`);
  }
  const bigEndian = 'must be little-endian, got a big-endian file. Convert it with gguf-py';
  if (magic === 'FUGG') unsupported(bigEndian);
  if (magic !== 'GGUF') malformed(`must begin with "GGUF", got ${printable(magic)}`);
  const version = cursor.u32();
  if (version === 2 || version === 3) return version;
  if (version !== 0 && (version & 0xffff) === 0) unsupported(bigEndian);
  if (version === 0) malformed('version must be 2 or 3, got 0');
  const newer = version > 3 ? 'Update lowrank' : 'Convert it again with a current llama.cpp';
  return unsupported(`version must be 2 or 3, got ${version}. ${newer}`);
}

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, malformed: Malformed): number {
  const given = metadata.get(kAlignmentKey);
  if (given === undefined) return kDefaultAlignment;
  if (given.type !== 'u32' || !isAlignment(given.value)) {
    const got = given.type === 'u32' ? String(given.value) : `a value of type ${given.type}`;
    malformed(`metadata "${kAlignmentKey}" must be ${kAlignments}, got ${got}`);
  }
  return given.value as number;
}

type Info = Omit<GgufEntry, 'begin_bytes'> & { readonly offset_bytes: number };

function readInfos(cursor: HeaderCursor, count: number, unsupported: Malformed): Info[] {
  if (count > kMaxTensors) {
    cursor.refuse(`number of tensors must be at most ${kMaxTensors}, got ${count}`);
  }
  cursor.requireRoom(count, kLeastTensorBytes, 'tensors');
  const infos: Info[] = [];
  const seen = new Set<string>();
  for (let index = 0; index < count; index++) {
    cursor.place = () => `tensor ${index}`;
    const name = cursor.name('a name', kMaxNameBytes);
    cursor.place = () => `tensor ${printable(name)}`;
    if (seen.has(name)) cursor.refuse('a name must occur once, got it twice');
    seen.add(name);
    const rank = cursor.u32();
    if (rank > kMaxDims) cursor.refuse(`must have at most ${kMaxDims} dimensions, got ${rank}`);
    const shape = Array.from({ length: rank }, () => cursor.u64('a dimension')).reverse();
    const id = cursor.u32();
    const type = ggufTypeOf(id);
    if (type === undefined) {
      const got = describeRefusedType(id);
      return unsupported(`tensor ${printable(name)} must be of a type that is read, got ${got}`);
    }
    const length_bytes = ggufByteLength(type, shape);
    if (typeof length_bytes === 'string') cursor.refuse(`must have ${length_bytes}`);
    const offset_bytes = cursor.u64('offset');
    infos.push({ name, type, shape, length_bytes: length_bytes as number, offset_bytes });
  }
  cursor.place = undefined;
  return infos;
}

/** Requires that the tensors follow one another, each at the next multiple of the alignment. */
function layOut(
  infos: readonly Info[],
  data_start_bytes: number,
  alignment: number,
  malformed: Malformed,
): GgufEntry[] {
  let expected_bytes = 0;
  return infos.map(({ offset_bytes, ...info }) => {
    const what = `tensor ${printable(info.name)}`;
    if (offset_bytes % alignment !== 0) {
      malformed(`${what} must begin at a multiple of ${alignment} bytes, got ${offset_bytes}`);
    }
    if (offset_bytes !== expected_bytes) {
      const flaw = offset_bytes < expected_bytes ? 'an overlap' : 'a hole';
      malformed(
        `${what} must begin at byte ${expected_bytes} of the data, behind the tensor before it, ` +
          `got ${offset_bytes}, ${flaw}`,
      );
    }
    expected_bytes = alignUp(offset_bytes + info.length_bytes, alignment);
    return { ...info, begin_bytes: data_start_bytes + offset_bytes };
  });
}

/** The file ends with its last tensor, or with the padding behind it. */
function checkEnd(
  entries: readonly GgufEntry[],
  header_bytes: number,
  alignment: number,
  file_bytes: number,
  malformed: Malformed,
): void {
  for (const { name, begin_bytes, length_bytes } of entries) {
    if (begin_bytes + length_bytes > file_bytes) {
      const end = begin_bytes + length_bytes;
      malformed(
        `tensor ${printable(name)} must end within the ${file_bytes} bytes of the file, got byte ${end}`,
      );
    }
  }
  const last = entries.at(-1);
  const end_bytes = last === undefined ? header_bytes : last.begin_bytes + last.length_bytes;
  const most_bytes = alignUp(end_bytes, alignment);
  if (file_bytes > most_bytes) {
    malformed(`must end at byte ${most_bytes}, behind its last tensor, got ${file_bytes} bytes`);
  }
}
