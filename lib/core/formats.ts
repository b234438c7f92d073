import { fail, wrongType } from './errors.js';

/** Properties of a format, except its name. */
interface FormatProperties {
  /** Bits of one code. */
  readonly bits: 4 | 8;
  /** Entries of the codebook. */
  readonly levels: 16 | 256;
  /** Whether the codebook lists magnitudes, then their negatives (the top bit of a code is the sign). Otherwise it ascends. */
  readonly signMagnitude: boolean;
  /** Elements that share a scale: a power of two from here... */
  readonly minBlocksize: number;
  /** ...to here. */
  readonly maxBlocksize: number;
  readonly defaultBlocksize: number;
  /** Whether bitsandbytes has the format: only then can its checkpoints hold it. */
  readonly bitsandbytes: boolean;
}

const kBlocks = { minBlocksize: 32, maxBlocksize: 4096, defaultBlocksize: 64 } as const;
const k4Bits = { bits: 4, levels: 16, signMagnitude: false, ...kBlocks } as const;
const k8Bits = {
  ...kBlocks,
  bits: 8,
  levels: 256,
  signMagnitude: false,
  defaultBlocksize: 256,
} as const;

/** One row per format. The types, messages, commands and tests that list formats read it. */
const kRows = [
  { name: 'nf4', ...k4Bits, bitsandbytes: true },
  { name: 'fp4', ...k4Bits, signMagnitude: true, bitsandbytes: true },
  { name: 'int8', ...k8Bits, bitsandbytes: true },
  { name: 'int4', ...k4Bits, bitsandbytes: false },
] as const satisfies readonly (FormatProperties & { readonly name: string })[];

type Row = (typeof kRows)[number];

/** Blockwise formats of a frozen base weight. */
export type QuantFormat = Row['name'];

/**
 * The blockwise formats of bitsandbytes. `int8` is its blockwise 8-bit quantisation with the dynamic
 * map. It has no checkpoint key for it, so the state is named like the 4-bit ones.
 */
export type BitsandbytesFormat = Extract<Row, { readonly bitsandbytes: true }>['name'];

/** A row of the table of formats. A test compares the native table in native/core/quant_format.cpp with it. */
export interface FormatInfo extends FormatProperties {
  readonly name: QuantFormat;
}

/** One row per format. */
export const FORMATS: readonly FormatInfo[] = Object.freeze([...kRows]);

/** Their names. */
export const formatNames: readonly QuantFormat[] = FORMATS.map(({ name }) => name);

/** The formats that bitsandbytes has. */
export const bitsandbytesNames: readonly BitsandbytesFormat[] = kRows.flatMap((row) =>
  row.bitsandbytes ? [row.name] : [],
);

export function isBitsandbytes(name: QuantFormat): name is BitsandbytesFormat {
  return formatOf(name).bitsandbytes;
}

/** The formats of one width. */
export function namesOfBits(bits: 4 | 8): readonly QuantFormat[] {
  return FORMATS.filter((format) => format.bits === bits).map(({ name }) => name);
}

/** The row of a known name. */
export function formatOf(name: QuantFormat): FormatInfo {
  return FORMATS.find((format) => format.name === name) as FormatInfo;
}

/** How commands name the storage of a weight: a format, or rowwise int8 as in LLM.int8. */
export type StoredFormat = QuantFormat | typeof kRowwise;
const kRowwise = 'int8-rowwise';

/** Every such name. */
export const storedNames: readonly StoredFormat[] = [...formatNames, kRowwise];

/** The names that checkpoints of bitsandbytes can hold. */
export const bitsandbytesStored: readonly (BitsandbytesFormat | typeof kRowwise)[] = [
  ...bitsandbytesNames,
  kRowwise,
];

/** The options of `quantize` for the name. */
export function storedAs(name: StoredFormat): { format: QuantFormat; rowwise: boolean } {
  return name === kRowwise ? { format: 'int8', rowwise: true } : { format: name, rowwise: false };
}

/** @throws ERR_TYPE; ERR_FORMAT, which lists the known formats. */
export function checkFormat(op: string, format: unknown): FormatInfo {
  if (typeof format !== 'string') throw wrongType(op, 'format', 'a format name', format);
  const info = FORMATS.find(({ name }) => name === format);
  if (info === undefined) {
    const names = formatNames.join(', ');
    fail('ERR_FORMAT', op, 'format', `one of ${names}`, `"${format}"`);
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

/** Can an int4 weight with rows of K have zero-points, that is, are its rows whole blocks? */
export function wholeInt4Blocks(K: number, blocksize?: number): boolean {
  return K > 0 && K % (blocksize ?? formatOf('int4').defaultBlocksize) === 0;
}
