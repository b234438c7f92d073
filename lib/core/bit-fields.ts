/**
 * Codes in the bits of a file. A layout says where the bits of element (row, column) are; one pair of
 * functions reads and writes them all.
 */
import { type Binding, optionalNative } from './binding.js';
import { fail } from './errors.js';

/**
 * Where along one dimension an element's bits are: element i is at bit
 * `floor(i / at.length) · stride + at[i % at.length]`. Neither is negative.
 */
export interface Steps {
  readonly at: ArrayLike<number>;
  readonly stride: number;
}

/**
 * Some bits of every code. The bits of element (n, k) begin at `base + rows(n) + columns(k)`, counted from the low bit of
 * each byte on; they become bits `shift` and up of the code.
 */
export interface Field {
  readonly base: number;
  readonly rows: Steps;
  readonly columns: Steps;
  /** Number of bits, 0 to 8: of all elements, or of column k by `k % columns.at.length`. */
  readonly bits: number | ArrayLike<number>;
  /** Likewise. */
  readonly shift: number | ArrayLike<number>;
}

/** A layout: the fields of a code, which together are `code XOR flip`. */
export interface Fields {
  readonly rows: number;
  readonly columns: number;
  readonly fields: readonly Field[];
  /** 0 if absent. */
  readonly flip?: number;
}

/** Columns whose bits lie alike in every run, with whole bytes between two runs. */
interface Run {
  readonly columns: number;
  readonly stride_bytes: number;
  readonly byte: Uint32Array;
  readonly bit: Uint8Array;
  readonly mask: Uint8Array;
  readonly shift: Uint8Array;
}

const each = (value: number | ArrayLike<number>, i: number): number =>
  typeof value === 'number' ? value : (value[i] as number);

/** Short patterns are repeated, because a run costs as much as some columns. */
const kLeastRun = 64;

function runOf({ columns, bits, shift }: Field): Run {
  const { at, stride } = columns;
  let times = Math.ceil(kLeastRun / at.length);
  while ((times * stride) % 8 !== 0) times++;
  const length = times * at.length;
  const run = {
    columns: length,
    stride_bytes: (times * stride) / 8,
    byte: new Uint32Array(length),
    bit: new Uint8Array(length),
    mask: new Uint8Array(length),
    shift: new Uint8Array(length),
  };
  for (let i = 0; i < length; i++) {
    const inner = i % at.length;
    const start = Math.floor(i / at.length) * stride + (at[inner] as number);
    run.byte[i] = Math.floor(start / 8);
    run.bit[i] = start % 8;
    run.mask[i] = (1 << each(bits, inner)) - 1;
    run.shift[i] = each(shift, inner);
  }
  return run;
}

/** Bits that the elements of a dimension reach, from the first to past the last. */
function reachOf({ at, stride }: Steps, count: number, bits: number | ArrayLike<number>) {
  let [first, end] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let i = 0; i < Math.min(at.length, count); i++) {
    const length = each(bits, i);
    if (typeof bits !== 'number' && length === 0) continue;
    const last = Math.floor((count - 1 - i) / at.length) * stride;
    first = Math.min(first, at[i] as number);
    end = Math.max(end, (at[i] as number) + last + length);
  }
  return { first, end };
}

/** @throws ERR_SHAPE if a field points outside of the bytes */
function checkFields(op: string, { rows, columns, fields }: Fields, bytes: Uint8Array): void {
  for (const field of fields) {
    const [row, column] = [
      reachOf(field.rows, rows, 0),
      reachOf(field.columns, columns, field.bits),
    ];
    const first = field.base + row.first + column.first;
    const end = field.base + row.end + column.end;
    // Without an element or a bit, `end` is -Infinity.
    if (end > first && (first < 0 || end > bytes.length * 8)) {
      const expected = `bits of [${rows}, ${columns}] inside ${bytes.length} bytes`;
      fail('ERR_SHAPE', op, 'bytes', expected, `bits ${first} to ${end}`);
    }
  }
}

/** Calls `visit` with every run of every row: its first element, the byte and bit where it starts, its columns. */
function visitRuns(
  { rows, columns, fields }: Fields,
  visit: (run: Run, element: number, byte: number, bit: number, count: number) => void,
): void {
  for (const field of fields) {
    const run = runOf(field);
    const { at, stride } = field.rows;
    for (let n = 0; n < rows; n++) {
      const start = field.base + Math.floor(n / at.length) * stride + (at[n % at.length] as number);
      const bit = start % 8;
      let byte = (start - bit) / 8;
      for (let k = 0; k < columns; k += run.columns) {
        visit(run, n * columns + k, byte, bit, Math.min(run.columns, columns - k));
        byte += run.stride_bytes;
      }
    }
  }
}

/** Codes from which on a call of the addon is quicker. */
const kNativeElements = 1 << 12;

/** The codes [rows · columns] of a layout. @throws ERR_SHAPE if it points outside of `bytes` */
export function readFields(bytes: Uint8Array, layout: Fields): Uint8Array<ArrayBuffer> {
  const addon = layout.rows * layout.columns < kNativeElements ? undefined : optionalNative();
  return addon === undefined ? readFieldsHere(bytes, layout) : readFieldsBy(addon, bytes, layout);
}

/** The loops in the addon, on the threads of the CPU device. */
export function readFieldsBy(
  addon: Binding,
  bytes: Uint8Array,
  layout: Fields,
): Uint8Array<ArrayBuffer> {
  checkFields('readFields', layout, bytes);
  const { rows, columns, flip = 0 } = layout;
  const codes = new Uint8Array(rows * columns).fill(flip);
  if (codes.length === 0) return codes;
  const threads = addon.threads();
  for (const field of layout.fields) {
    const { stride_bytes, byte, bit, mask, shift } = runOf(field);
    const { at, stride } = field.rows;
    const sizes = Float64Array.of(rows, columns, field.base, stride, stride_bytes, threads);
    addon.readFields(bytes, codes, sizes, Float64Array.from(at), byte, bit, mask, shift);
  }
  return codes;
}

/** The same in JavaScript: where there is no addon, and for a few codes. @throws ERR_SHAPE */
export function readFieldsHere(bytes: Uint8Array, layout: Fields): Uint8Array<ArrayBuffer> {
  checkFields('readFields', layout, bytes);
  const codes = new Uint8Array(layout.rows * layout.columns).fill(layout.flip ?? 0);
  visitRuns(layout, (run, element, start, bit, count) => {
    for (let i = 0; i < count; i++) {
      const from = bit + (run.bit[i] as number);
      const byte = start + (run.byte[i] as number) + (from >> 3);
      const word = (bytes[byte] as number) | ((bytes[byte + 1] ?? 0) << 8);
      const value = (word >> (from & 7)) & (run.mask[i] as number);
      codes[element + i] = (codes[element + i] as number) ^ (value << (run.shift[i] as number));
    }
  });
  return codes;
}

/** Puts codes into the bits of `bytes`, which are zero there. @throws ERR_SHAPE */
export function writeFields(codes: Uint8Array, layout: Fields, bytes: Uint8Array): void {
  checkFields('writeFields', layout, bytes);
  const flip = layout.flip ?? 0;
  visitRuns(layout, (run, element, start, bit, count) => {
    for (let i = 0; i < count; i++) {
      const code = (codes[element + i] as number) ^ flip;
      const value = (code >> (run.shift[i] as number)) & (run.mask[i] as number);
      const from = bit + (run.bit[i] as number);
      const byte = start + (run.byte[i] as number) + (from >> 3);
      const word = value << (from & 7);
      bytes[byte] = (bytes[byte] as number) | (word & 255);
      // Only where there is one: a last code may end with its byte.
      if (word > 255) bytes[byte + 1] = (bytes[byte + 1] as number) | (word >> 8);
    }
  });
}

/** The first code that is not below `end`, or -1. The weight of a layer has millions of codes. */
export function firstFrom(codes: Uint8Array, end: number): number {
  const largest = optionalNative()?.largestCode(codes);
  if (largest !== undefined && largest < end) return -1;
  for (let i = 0; i < codes.length; i++) if ((codes[i] as number) >= end) return i;
  return -1;
}
