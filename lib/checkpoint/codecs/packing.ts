/** The bit permutations that several layouts share, as fields of lib/core/bit-fields.ts. */
import { type Field, type Fields, readFields, writeFields } from '../../core/bit-fields.js';
import { bytesOf, type RawTensor } from '../raw-tensor.js';

const kWord = 32;

interface Stream {
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  /** Bits from a row to the next. */
  readonly rowPitch: number;
  /** Bits from a word of a row to its next; 32 where they lie side by side. */
  readonly wordPitch?: number;
  readonly flip?: number;
}

const divisorOf = (a: number, b: number): number => (b === 0 ? a : divisorOf(b, a % b));

/** Codes that follow each other from the low bits of a row's words, without gaps; one may lie in two words. */
export function streams({ rows, columns, bits, rowPitch, wordPitch, flip }: Stream): Fields {
  const pitch = wordPitch ?? kWord;
  const common = divisorOf(bits, kWord);
  const run = Array.from({ length: kWord / common }, (_, i) => i * bits);
  const place = (bit: number): number => Math.floor(bit / kWord) * pitch + (bit % kWord);
  const field = {
    base: 0,
    rows: { at: [0], stride: rowPitch },
    columns: { at: run.map(place), stride: (bits / common) * pitch },
  };
  const low = run.map((start) => Math.min(bits, kWord - (start % kWord)));
  const fields: Field[] = [{ ...field, bits: low, shift: 0 }];
  if (low.some((length) => length < bits)) {
    const next = run.map((start) => place((Math.floor(start / kWord) + 1) * kWord));
    const columnsAt = { ...field.columns, at: next };
    const rest = low.map((length) => bits - length);
    fields.push({ ...field, columns: columnsAt, bits: rest, shift: low });
  }
  return { rows, columns, fields, ...(flip === undefined ? {} : { flip }) };
}

/** Nibbles of [rows, columns] that follow each other, the first of a byte in the low or the high bits. */
export function nibbles(rows: number, columns: number, first: 'low' | 'high'): Fields {
  const field: Field = {
    base: 0,
    rows: { at: [0], stride: columns * 4 },
    columns: { at: first === 'low' ? [0, 4] : [4, 0], stride: 8 },
    bits: 4,
    shift: 0,
  };
  return { rows, columns, fields: [field] };
}

export const readCodes = ({ data }: RawTensor, layout: Fields): Uint8Array<ArrayBuffer> =>
  readFields(bytesOf(data), layout);

/** @param bytes of the whole tensor */
export function packCodes(
  codes: Uint8Array,
  layout: Fields,
  bytes: number,
): Uint8Array<ArrayBuffer> {
  const packed = new Uint8Array(bytes);
  writeFields(codes, layout, packed);
  return packed;
}
