/**
 * How a block of a GGUF type lies in its bytes. A family of types is a file of such descriptions; `parts.ts` reads and writes
 * them all.
 */

/** Some bits of a number of each element, or of each group, of a block; see `Field` in lib/core/bit-fields.ts. */
export interface BlockField {
  /** Bit of the block at which the bits of the i-th number begin, from the low bit of its first byte. */
  readonly at: readonly number[];
  readonly bits: number | readonly number[];
  /** The bit of the number at which they go; 0 if absent. */
  readonly shift?: number | readonly number[];
}

/** Small integers of a block, and what they stand for. */
export interface BlockIntegers {
  readonly fields: readonly BlockField[];
  /** [2 ** bits], the value of each integer in f32. */
  readonly table: Float32Array<ArrayBuffer>;
}

/**
 * The scales of a block, or its minima: an integer a group times an f16 of the block, or one of the two alone. A block
 * without integers is a group.
 */
export interface BlockPlane {
  readonly integers?: BlockIntegers;
  /** Byte of the block at which its f16 begins. */
  readonly half?: number;
  /** The block adds its minimum, where a planar weight subtracts it: the sign of the f16 changes. */
  readonly added?: boolean;
}

/** A type: `w = levels[code] · scale`, or that less the minimum. */
export interface BlockLayout {
  /** Elements that share a scale. */
  readonly group: number;
  /** Bits of a code; its levels are the table. */
  readonly bits: number;
  readonly codes: BlockIntegers;
  readonly scale: BlockPlane;
  readonly min?: BlockPlane;
}

/**
 * Where codes of `bits` bits are that share bytes with codes `chunk` elements away: the first codes of `chunk` bytes, then
 * their second ones, and so on, from the low bits. A chunk of 1 is a stream.
 * @param count number of codes
 * @param byte where they begin
 */
export function shared(count: number, byte: number, bits: number, chunk: number): number[] {
  const span = (chunk * 8) / bits;
  return Array.from({ length: count }, (_, i) => {
    const within = i % span;
    const bytes = byte + Math.floor(i / span) * chunk + (within % chunk);
    return 8 * bytes + bits * Math.floor(within / chunk);
  });
}

/** The values `first`, `first + 1`, ... of integers of `bits` bits. */
export const counting = (bits: number, first = 0): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: 2 ** bits }, (_, i) => first + i);

/** The values of integers of `bits` bits in two's complement. */
export const signed = (bits: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: 2 ** bits }, (_, i) => (i < 2 ** (bits - 1) ? i : i - 2 ** bits));
