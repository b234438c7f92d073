/**
 * Codes in the bits of a file. A layout says where the bits of element (row, column) are; one pair of
 * functions reads and writes them all.
 */
import { fail } from './errors.js';

/**
 * Where along one dimension an element's bits are: element i is at bit
 * `floor(i / at.length) · stride + at[i % at.length]`.
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

const each = (value: number | ArrayLike<number>, i: number): number =>
  typeof value === 'number' ? value : (value[i] as number);

/** Calls `visit` with the bit address of every field of every element. @throws ERR_SHAPE */
function visitFields(
  { rows, columns, fields }: Fields,
  bytes: Uint8Array,
  visit: (element: number, bit: number, bits: number, shift: number) => void,
): void {
  for (const field of fields) {
    const { at, stride } = field.columns;
    for (let n = 0; n < rows; n++) {
      const turn = field.rows.at.length;
      const start =
        field.base + Math.floor(n / turn) * field.rows.stride + (field.rows.at[n % turn] as number);
      for (let k = 0; k < columns; k++) {
        const inner = k % at.length;
        const bits = each(field.bits, inner);
        if (bits === 0) continue;
        const bit = start + Math.floor(k / at.length) * stride + (at[inner] as number);
        if (bit < 0 || bit + bits > bytes.length * 8) {
          const expected = `bits of [${rows}, ${columns}] inside ${bytes.length} bytes`;
          fail('ERR_SHAPE', 'readFields', 'bytes', expected, `bit ${bit} of (${n}, ${k})`);
        }
        visit(n * columns + k, bit, bits, each(field.shift, inner));
      }
    }
  }
}

/** The codes [rows · columns] of a layout. @throws ERR_SHAPE if it points outside of `bytes` */
export function readFields(bytes: Uint8Array, layout: Fields): Uint8Array {
  const codes = new Uint8Array(layout.rows * layout.columns).fill(layout.flip ?? 0);
  visitFields(layout, bytes, (element, bit, bits, shift) => {
    const byte = Math.floor(bit / 8);
    const word = (bytes[byte] as number) | ((bytes[byte + 1] ?? 0) << 8);
    const value = (word >> (bit % 8)) & ((1 << bits) - 1);
    codes[element] = (codes[element] as number) ^ (value << shift);
  });
  return codes;
}

/** Puts codes into the bits of `bytes`, which are zero there. @throws ERR_SHAPE */
export function writeFields(codes: Uint8Array, layout: Fields, bytes: Uint8Array): void {
  const flip = layout.flip ?? 0;
  visitFields(layout, bytes, (element, bit, bits, shift) => {
    const value = (((codes[element] as number) ^ flip) >> shift) & ((1 << bits) - 1);
    const byte = Math.floor(bit / 8);
    const word = value << (bit % 8);
    bytes[byte] = (bytes[byte] as number) | (word & 255);
    if (word > 255) bytes[byte + 1] = (bytes[byte + 1] as number) | (word >> 8);
  });
}
