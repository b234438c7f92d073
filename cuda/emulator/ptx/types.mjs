/** The types of PTX as C++ sees them. */

const kBytes = {
  pred: 1,
  ...{ b8: 1, u8: 1, s8: 1, e4m3: 1, e5m2: 1 },
  ...{ b16: 2, u16: 2, s16: 2, f16: 2, bf16: 2, e4m3x2: 2, e5m2x2: 2 },
  ...{ b32: 4, u32: 4, s32: 4, f32: 4, tf32: 4, f16x2: 4, bf16x2: 4 },
  ...{ b64: 8, u64: 8, s64: 8, f64: 8, f32x2: 8 },
  b128: 16,
};

export const isType = (word) => Object.hasOwn(kBytes, word);
export function bytesOf(type) {
  if (!isType(type)) throw new Error(`an unknown type: .${type}`);
  return kBytes[type];
}
export const bitsOf = (type) => bytesOf(type) * 8;

export const isFloat = (type) => type === 'f32' || type === 'f64';
export const isHalf = (type) => type === 'f16' || type === 'bf16';
export const isPacked = (type) => type === 'f16x2' || type === 'bf16x2';
export const isSigned = (type) => /^s\d/.test(type);
export const isInteger = (type) => /^[bus]\d+$/.test(type);

/** Registers are kept as bits: an unsigned integer of their width. */
export const bitsType = (type) =>
  type === 'pred'
    ? 'bool'
    : { 1: 'uint8_t', 2: 'uint16_t', 4: 'uint32_t', 8: 'uint64_t', 16: 'uint128_t' }[bytesOf(type)];

/** The type in which C++ computes. */
export function valueType(type) {
  if (type === 'f32') return 'float';
  if (type === 'f64') return 'double';
  if (isSigned(type)) return `int${bitsOf(type)}_t`;
  return bitsType(type);
}

/** A C++ class of support.h for a 16-bit float: how to widen and to round it. */
export const halfClass = (type) => (type.startsWith('bf16') ? 'BF16' : 'F16');
