/**
 * The values of a GGUF file's metadata. Each keeps the type that it has in the file, so that a file can be written back
 * byte for byte.
 */

/** A type of numbers: its number in files, and the array that holds many of them. */
const kNumberTypes = {
  u8: { id: 0, array: Uint8Array },
  i8: { id: 1, array: Int8Array },
  u16: { id: 2, array: Uint16Array },
  i16: { id: 3, array: Int16Array },
  u32: { id: 4, array: Uint32Array },
  i32: { id: 5, array: Int32Array },
  f32: { id: 6, array: Float32Array },
  u64: { id: 10, array: BigUint64Array },
  i64: { id: 11, array: BigInt64Array },
  f64: { id: 12, array: Float64Array },
} as const;

export type GgufNumberType = keyof typeof kNumberTypes;
/** Every type that an element of an array may have. */
export type GgufElementType = GgufNumberType | 'bool' | 'string' | 'array';

/** Type -> its number in files. */
export const kValueIds: Readonly<Record<GgufElementType, number>> = {
  ...(Object.fromEntries(
    Object.entries(kNumberTypes).map(([type, { id }]) => [type, id]),
  ) as Record<GgufNumberType, number>),
  bool: 7,
  string: 8,
  array: 9,
};

export const valueTypes = Object.keys(kValueIds) as readonly GgufElementType[];
const kById = new Map(valueTypes.map((type) => [kValueIds[type], type]));

export const valueTypeOf = (id: number): GgufElementType | undefined => kById.get(id);

export const isNumberType = (type: GgufElementType): type is GgufNumberType =>
  Object.hasOwn(kNumberTypes, type);

/** What holds the elements of an array. */
type ArrayData = {
  readonly [T in GgufNumberType]: InstanceType<(typeof kNumberTypes)[T]['array']>;
} & {
  readonly bool: readonly boolean[];
  readonly string: readonly (string | Uint8Array)[];
  readonly array: readonly GgufArray[];
};

/**
 * An array of metadata: a typed array of numbers (64-bit integers as bigint), an array of booleans or of texts, or an array
 * of arrays.
 */
export type GgufArray = {
  readonly [T in GgufElementType]: {
    readonly type: 'array';
    readonly of: T;
    readonly value: ArrayData[T];
  };
}[GgufElementType];

/**
 * A value of a GGUF file's metadata with its type in the file. A 64-bit integer is a number where a number holds it exactly,
 * otherwise a bigint. A text is a string where it is valid UTF-8, otherwise its bytes: vocabularies hold such tokens.
 *
 * @example
 * const context: GgufValue = { type: 'u32', value: 4096 };
 * const tokens: GgufValue = { type: 'array', of: 'string', value: ['<s>', '</s>'] };
 */
export type GgufValue =
  | {
      readonly type: Exclude<GgufNumberType, 'u64' | 'i64'>;
      readonly value: number;
    }
  | { readonly type: 'u64' | 'i64'; readonly value: number | bigint }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'string'; readonly value: string | Uint8Array }
  | GgufArray;

interface NumberArray {
  new (buffer: ArrayBuffer): ArrayData[GgufNumberType];
  readonly BYTES_PER_ELEMENT: number;
  readonly name: string;
}

/** The array that holds numbers of a type. */
export const numberArray = (type: GgufNumberType): NumberArray => kNumberTypes[type].array;

/** Bytes of a number. */
export const numberBytes = (type: GgufNumberType): number => numberArray(type).BYTES_PER_ELEMENT;

/** Deepest nesting of arrays in arrays; llama.cpp and gguf-py write none. */
export const kMaxArrayDepth = 8;
/** The longest key, in bytes: the specification's limit. */
export const kMaxKeyBytes = 65_535;
/** The longest name of a tensor, in bytes. llama.cpp itself reads names of at most 63. */
export const kMaxNameBytes = 255;
/** The key that says at which multiples tensors begin. */
export const kAlignmentKey = 'general.alignment';
export const kDefaultAlignment = 32;
/** A huge page; real files have 32, some 4096. */
const kMaxAlignment = 1 << 21;

/** Is a number one that tensors may be aligned to? */
export const isAlignment = (value: number): boolean =>
  Number.isInteger(value) && value >= 1 && value <= kMaxAlignment && (value & (value - 1)) === 0;

export const kAlignments = `a power of two from 1 to ${kMaxAlignment} of type u32`;

/** The next multiple of an alignment. */
export const alignUp = (bytes: number, alignment: number): number =>
  Math.ceil(bytes / alignment) * alignment;
