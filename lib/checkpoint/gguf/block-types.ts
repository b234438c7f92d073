/**
 * The types of tensors in a GGUF file: how many bytes hold how many elements. Reader, writer and `lowrank info` use this
 * list; the decoders of blocks take their sizes from it.
 */

import { fail } from '../../core/errors.js';

/** How a type stores its elements: in blocks, each of consecutive elements of one row. */
export interface GgufTypeInfo {
  /** The number that files hold. */
  readonly id: number;
  /** Elements of a block. */
  readonly elements: number;
  /** Bytes of a block. */
  readonly bytes: number;
}

const kTypes = {
  F32: { id: 0, elements: 1, bytes: 4 },
  F16: { id: 1, elements: 1, bytes: 2 },
  Q4_0: { id: 2, elements: 32, bytes: 18 },
  Q4_1: { id: 3, elements: 32, bytes: 20 },
  Q5_0: { id: 6, elements: 32, bytes: 22 },
  Q5_1: { id: 7, elements: 32, bytes: 24 },
  Q8_0: { id: 8, elements: 32, bytes: 34 },
  Q2_K: { id: 10, elements: 256, bytes: 84 },
  Q3_K: { id: 11, elements: 256, bytes: 110 },
  Q4_K: { id: 12, elements: 256, bytes: 144 },
  Q5_K: { id: 13, elements: 256, bytes: 176 },
  Q6_K: { id: 14, elements: 256, bytes: 210 },
  IQ4_NL: { id: 20, elements: 32, bytes: 18 },
  IQ4_XS: { id: 23, elements: 256, bytes: 136 },
  I8: { id: 24, elements: 1, bytes: 1 },
  I16: { id: 25, elements: 1, bytes: 2 },
  I32: { id: 26, elements: 1, bytes: 4 },
  I64: { id: 27, elements: 1, bytes: 8 },
  F64: { id: 28, elements: 1, bytes: 8 },
  BF16: { id: 30, elements: 1, bytes: 2 },
  TQ2_0: { id: 35, elements: 256, bytes: 66 },
  MXFP4: { id: 39, elements: 32, bytes: 17 },
  NVFP4: { id: 40, elements: 64, bytes: 36 },
} as const satisfies Readonly<Record<string, GgufTypeInfo>>;

/** The name of a type that is read and written, spelled as in llama.cpp. */
export type GgufType = keyof typeof kTypes;

/**
 * Every type of GGUF tensor that is read and written: its number in files, elements and bytes of a block.
 * Bits a weight are `8 · bytes / elements`.
 *
 * @example
 * const { bytes, elements } = GGUF_TYPES.Q4_K;
 * console.log((8 * bytes) / elements); // 4.5
 */
export const GGUF_TYPES: Readonly<Record<GgufType, GgufTypeInfo>> = kTypes;

/** The names, in the order of their numbers. */
export const ggufTypeNames: readonly GgufType[] = Object.keys(kTypes) as GgufType[];

const kById = new Map<number, GgufType>(ggufTypeNames.map((type) => [kTypes[type].id, type]));

const kVectors = {
  why: 'its codes are indices into a table of vectors',
  instead: 'Q2_K, Q3_K or IQ4_XS',
};
const kActivations = { why: 'it is a format of activations', instead: 'Q8_0' };
const kOld = { why: 'llama.cpp has removed it', instead: 'Q4_0' };
const kInterleaved = { why: 'llama.cpp has removed it and interleaves while loading' };

/** Types that exist and are not read: why, and which one to take. */
const kRefused: Readonly<Record<number, { name: string; why: string; instead: string }>> = {
  4: { name: 'Q4_2', ...kOld },
  5: { name: 'Q4_3', ...kOld },
  9: { name: 'Q8_1', ...kActivations },
  15: { name: 'Q8_K', ...kActivations },
  16: { name: 'IQ2_XXS', ...kVectors },
  17: { name: 'IQ2_XS', ...kVectors },
  18: { name: 'IQ3_XXS', ...kVectors },
  19: { name: 'IQ1_S', ...kVectors },
  21: { name: 'IQ3_S', ...kVectors },
  22: { name: 'IQ2_S', ...kVectors },
  29: { name: 'IQ1_M', ...kVectors },
  31: { name: 'Q4_0_4_4', ...kInterleaved, instead: 'Q4_0' },
  32: { name: 'Q4_0_4_8', ...kInterleaved, instead: 'Q4_0' },
  33: { name: 'Q4_0_8_8', ...kInterleaved, instead: 'Q4_0' },
  34: { name: 'TQ1_0', why: 'its bytes hold five digits of base 3', instead: 'TQ2_0' },
  36: { name: 'IQ4_NL_4_4', ...kInterleaved, instead: 'IQ4_NL' },
  37: { name: 'IQ4_NL_4_8', ...kInterleaved, instead: 'IQ4_NL' },
  38: { name: 'IQ4_NL_8_8', ...kInterleaved, instead: 'IQ4_NL' },
  41: { name: 'Q1_0', why: 'no decoder for one bit a weight is here', instead: 'TQ2_0 or Q2_K' },
};

/** The type with a number of a file, or `undefined`. */
export function ggufTypeOf(id: number): GgufType | undefined {
  return kById.get(id);
}

/** Is a string the name of a type that is read? */
export function isGgufType(name: unknown): name is GgufType {
  return typeof name === 'string' && Object.hasOwn(kTypes, name);
}

/** What a file has whose type is not read, with the way out: ends a sentence `must be ..., got`. */
export function describeRefusedType(id: number): string {
  const row = Object.hasOwn(kRefused, id) ? kRefused[id] : undefined;
  if (row === undefined) {
    return `type number ${id}, which this version does not know. Take another file of this model`;
  }
  const { name, why, instead } = row;
  return `${name}, which is not read, because ${why}. Take a file of this model in ${instead}`;
}

/** The most dimensions that ggml has. */
export const kMaxDims = 4;
/** Below 2^53 bytes for every type. */
const kMaxElements = Number.MAX_SAFE_INTEGER / 64;

/**
 * Bytes of a tensor, or what is wrong with its shape: ends a sentence `must have`.
 * @param shape row-major: the last dimension is the row that blocks divide
 */
export function ggufByteLength(type: GgufType, shape: readonly number[]): number | string {
  const { elements, bytes } = kTypes[type];
  if (shape.length > kMaxDims) return `at most ${kMaxDims} dimensions, got ${shape.length}`;
  let total = 1;
  for (const dim of shape) {
    if (!Number.isSafeInteger(dim) || dim < 1) {
      return `dimensions of at least 1, got [${shape.join(', ')}]`;
    }
    if (total > kMaxElements / dim) {
      return `fewer than 2^53 / 64 elements, got [${shape.join(', ')}]`;
    }
    total *= dim;
  }
  const row = shape.at(-1) ?? 1;
  if (row % elements !== 0) {
    return `rows of a multiple of ${elements} elements in ${type}, got ${row}`;
  }
  return (total / elements) * bytes;
}

/** The bytes of a caller's tensor. @throws ERR_SHAPE */
export function checkGgufShape(
  op: string,
  operand: string,
  type: GgufType,
  shape: readonly number[],
): number {
  const length_bytes = ggufByteLength(type, shape);
  if (typeof length_bytes === 'number') return length_bytes;
  const [expected = '', got = ''] = length_bytes.split(', got ');
  return fail('ERR_SHAPE', op, operand, `one with ${expected}`, got);
}
