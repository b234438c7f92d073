import { fail, wrongType } from '../core/errors.js';

/** Blockwise formats of a frozen base weight. */
export type QuantFormat = 'nf4' | 'fp4' | 'int8' | 'int4';

/** How commands name what a weight is stored as: a format, or int8 by rows, as LLM.int8 has it. */
export type StoredFormat = QuantFormat | 'int8-rowwise';

/** The options of `quantize` that the name stands for. */
export function storedAs(name: StoredFormat): { format: QuantFormat; rowwise: boolean } {
  return name === 'int8-rowwise'
    ? { format: 'int8', rowwise: true }
    : { format: name, rowwise: false };
}

/** What a format is made of; the native table in native/core/quant_format.cpp is compared with it. */
export interface FormatInfo {
  readonly name: QuantFormat;
  /** Bits of one code. */
  readonly bits: 4 | 8;
  /** Entries of the codebook. */
  readonly levels: 16 | 256;
  /** Elements that share a scale: powers of two from here... */
  readonly minBlocksize: number;
  /** ...to here. */
  readonly maxBlocksize: number;
  readonly defaultBlocksize: number;
}

/** One row a format. */
export const FORMATS: readonly FormatInfo[] = Object.freeze([
  { name: 'nf4', bits: 4, levels: 16, minBlocksize: 32, maxBlocksize: 4096, defaultBlocksize: 64 },
  { name: 'fp4', bits: 4, levels: 16, minBlocksize: 32, maxBlocksize: 4096, defaultBlocksize: 64 },
  {
    name: 'int8',
    bits: 8,
    levels: 256,
    minBlocksize: 32,
    maxBlocksize: 4096,
    defaultBlocksize: 256,
  },
  { name: 'int4', bits: 4, levels: 16, minBlocksize: 32, maxBlocksize: 4096, defaultBlocksize: 64 },
]);

/** @throws ERR_TYPE, ERR_FORMAT with the known formats. */
export function checkFormat(op: string, format: unknown): FormatInfo {
  if (typeof format !== 'string') throw wrongType(op, 'format', 'a format name', format);
  const info = FORMATS.find(({ name }) => name === format);
  if (info === undefined) {
    const names = FORMATS.map(({ name }) => `'${name}'`).join(', ');
    fail('ERR_FORMAT', op, 'format', `one of ${names}`, `'${format}'`);
  }
  return info;
}

/** @throws ERR_TYPE, ERR_FORMAT */
export function checkBlocksize(op: string, format: FormatInfo, blocksize: unknown): number {
  if (typeof blocksize !== 'number') throw wrongType(op, 'blocksize', 'a number', blocksize);
  const { minBlocksize, maxBlocksize } = format;
  const valid =
    Number.isInteger(blocksize) &&
    blocksize >= minBlocksize &&
    blocksize <= maxBlocksize &&
    Number.isInteger(Math.log2(blocksize));
  if (!valid) {
    const expected = `a power of two from ${minBlocksize} to ${maxBlocksize}`;
    fail('ERR_FORMAT', op, 'blocksize', expected, String(blocksize));
  }
  return blocksize;
}

/** Can an int4 weight with rows of K have zero-points: are they whole blocks? */
export function wholeInt4Blocks(K: number, blocksize?: number): boolean {
  const own = FORMATS.find(({ name }) => name === 'int4')?.defaultBlocksize ?? 1;
  return K > 0 && K % (blocksize ?? own) === 0;
}
