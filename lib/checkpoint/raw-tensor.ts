/**
 * A tensor as stored in a checkpoint file: bytes with a dtype and a shape, nothing computed.
 *
 * Everything is little-endian, as in the files. So are the machines on which Node.js 20 runs these
 * kernels, and views need no byte swap.
 */

import { fail, LowrankTypeError, refusal } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkObject } from './arguments.js';

/** One row per dtype of the safetensors format: bits per element and the array type that holds it. */
interface RawDTypeRow {
  readonly bits: number;
  readonly view: ViewConstructor;
}

/** Every typed array that a {@link RawTensor} may carry. */
export type RawData =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array;

interface ViewConstructor {
  new (buffer: ArrayBuffer, byteOffset: number, length: number): RawData;
  readonly BYTES_PER_ELEMENT: number;
  readonly name: string;
}

/** The order matters: the writer lays tensors out in this order (largest alignment first). */
const kRawDTypes = {
  C64: { bits: 64, view: Uint8Array },
  U64: { bits: 64, view: BigUint64Array },
  I64: { bits: 64, view: BigInt64Array },
  F64: { bits: 64, view: Float64Array },
  F32: { bits: 32, view: Float32Array },
  U32: { bits: 32, view: Uint32Array },
  I32: { bits: 32, view: Int32Array },
  BF16: { bits: 16, view: Uint16Array },
  F16: { bits: 16, view: Uint16Array },
  U16: { bits: 16, view: Uint16Array },
  I16: { bits: 16, view: Int16Array },
  F8_E8M0: { bits: 8, view: Uint8Array },
  F8_E4M3: { bits: 8, view: Uint8Array },
  F8_E5M2: { bits: 8, view: Uint8Array },
  I8: { bits: 8, view: Int8Array },
  U8: { bits: 8, view: Uint8Array },
  F6_E3M2: { bits: 6, view: Uint8Array },
  F6_E2M3: { bits: 6, view: Uint8Array },
  F4: { bits: 4, view: Uint8Array },
  BOOL: { bits: 8, view: Uint8Array },
} satisfies Record<string, RawDTypeRow>;

/** The dtype names of the safetensors format, spelled as in the files. */
export type RawDType = keyof typeof kRawDTypes;

/** All dtype names, in the order in which the writer lays tensors out. */
export const rawDTypes: readonly RawDType[] = Object.keys(kRawDTypes) as RawDType[];

const kLayoutRank = new Map<string, number>(rawDTypes.map((dtype, index) => [dtype, index]));

/**
 * A tensor of a checkpoint file. `data` is row-major and holds exactly the tensor's bytes: the
 * natural typed array of the dtype (`F32` a Float32Array; `BF16` and `F16` a Uint16Array of bit
 * patterns; `BOOL` and the 8-, 6- and 4-bit floats a Uint8Array), or, when given to a writer, also a
 * Uint8Array over the same bytes.
 *
 * @example
 * const bias: RawTensor = { dtype: 'F32', shape: [2], data: new Float32Array([1, 2]) };
 */
export interface RawTensor {
  readonly dtype: RawDType;
  readonly shape: readonly number[];
  readonly data: RawData;
}

/** Is a string a dtype name of the safetensors format (case matters)? */
export function isRawDType(name: string): name is RawDType {
  return kLayoutRank.has(name);
}

/** Position of a dtype in the layout order of a file; smaller comes first. */
export function layoutRank(dtype: RawDType): number {
  return kLayoutRank.get(dtype) ?? rawDTypes.length;
}

/**
 * Bytes of a tensor, or `undefined` if the size is not a whole number of bytes or exceeds 2^53 - 1.
 *
 * Dimensions of 0 do not hide an overflow: `[0, 2^52, 2^52]` is rejected too, because a caller that
 * allocates by the other dimensions would overflow.
 *
 * @param shape non-negative safe integers
 */
export function rawByteLength(dtype: RawDType, shape: readonly number[]): number | undefined {
  const { bits } = kRawDTypes[dtype];
  let elements = 1;
  let empty = false;
  for (const dim of shape) {
    if (!Number.isSafeInteger(dim) || dim < 0) return undefined;
    if (dim === 0) {
      empty = true;
      continue;
    }
    if (elements > Number.MAX_SAFE_INTEGER / 64 / dim) return undefined;
    elements *= dim;
  }
  if (empty) return 0;
  const total_bits = elements * bits;
  return total_bits % 8 === 0 ? total_bits / 8 : undefined;
}

/** A view of the dtype's natural array type over newly allocated, hence aligned, bytes. */
export function rawView(dtype: RawDType, bytes: Uint8Array<ArrayBuffer>): RawData {
  const { view } = kRawDTypes[dtype];
  const View: ViewConstructor = view;
  return new View(bytes.buffer, bytes.byteOffset, bytes.byteLength / View.BYTES_PER_ELEMENT);
}

/** The bytes of a typed array, without a copy. */
export function bytesOf(data: RawData): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/**
 * Checks that a tensor for a writer is consistent: known dtype, sane shape, and a typed array of
 * exactly the right length and element size.
 *
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE`, `ERR_SHAPE`
 */
export function checkRawTensor(op: string, operand: string, tensor: RawTensor): void {
  if (Tensor.is(tensor)) {
    const expected = "as files hold it, like { dtype: 'F32', shape, data: tensor.readSync() }";
    throw new LowrankTypeError(op, refusal(op, operand, expected, 'a Tensor'));
  }
  checkObject(op, operand, tensor, 'a tensor of dtype, shape and data');
  const { dtype, shape, data } = tensor;
  if (typeof dtype !== 'string' || !isRawDType(dtype)) {
    fail('ERR_DTYPE', op, `${operand}.dtype`, `one of ${rawDTypes.join(', ')}`, String(dtype));
  }
  if (!Array.isArray(shape) || shape.some((dim) => !Number.isSafeInteger(dim) || dim < 0)) {
    fail('ERR_SHAPE', op, `${operand}.shape`, 'non-negative integers', `[${String(shape)}]`);
  }
  const byteLength = rawByteLength(dtype, shape);
  if (byteLength === undefined) {
    const size = 'a whole number of bytes below 2^53';
    fail('ERR_SHAPE', op, `${operand}.shape`, size, `${dtype}[${shape.join(', ')}]`);
  }
  if (!ArrayBuffer.isView(data) || data instanceof DataView) {
    fail('ERR_DTYPE', op, `${operand}.data`, 'a typed array', typeof data);
  }
  const View: ViewConstructor = kRawDTypes[dtype].view;
  if (data.BYTES_PER_ELEMENT !== 1 && !(data instanceof View)) {
    const expected = `a ${View.name} or a Uint8Array of its bytes`;
    fail('ERR_DTYPE', op, `${operand}.data`, expected, data.constructor.name);
  }
  if (data.byteLength !== byteLength) {
    const expected = `${byteLength} bytes for ${dtype}[${shape.join(', ')}]`;
    fail('ERR_SHAPE', op, `${operand}.data`, expected, `${data.byteLength} bytes`);
  }
}

/** The dtypes that factors may have. */
export const kFloatDTypes: readonly RawDType[] = ['F32', 'BF16', 'F16', 'F64'];

/**
 * The values of a floating point tensor as f32.
 *
 * `F32` is copied bit for bit, `BF16` and `F16` convert exactly (subnormals, infinities and NaN
 * included), `F64` is rounded once to nearest even.
 *
 * @param tensor dtype F32, BF16, F16 or F64
 * @returns a new Float32Array, row-major
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE` for any other dtype, `ERR_SHAPE`
 * @example
 * rawToFloat32({ dtype: 'BF16', shape: [1], data: new Uint16Array([0x3f80]) }); // [1]
 */
export function rawToFloat32(tensor: RawTensor): Float32Array<ArrayBuffer> {
  checkRawTensor('rawToFloat32', 'tensor', tensor);
  const bytes = bytesOf(tensor.data).slice();
  const n = bytes.byteLength;
  switch (tensor.dtype) {
    case 'F32':
      return new Float32Array(bytes.buffer, 0, n / 4);
    case 'F64':
      return Float32Array.from(new Float64Array(bytes.buffer, 0, n / 8));
    case 'BF16': {
      const bits = new Uint32Array(n / 2);
      const source = new Uint16Array(bytes.buffer, 0, n / 2);
      for (let i = 0; i < source.length; i++) bits[i] = (source[i] as number) << 16;
      return new Float32Array(bits.buffer);
    }
    case 'F16': {
      const bits = new Uint32Array(n / 2);
      const source = new Uint16Array(bytes.buffer, 0, n / 2);
      for (let i = 0; i < source.length; i++) bits[i] = f16ToF32Bits(source[i] as number);
      return new Float32Array(bits.buffer);
    }
    default:
      return fail('ERR_DTYPE', 'rawToFloat32', 'tensor', 'F32, BF16, F16 or F64', tensor.dtype);
  }
}

/** Bits of the f32 that equals an f16; exact for every one of the 65,536 patterns. */
function f16ToF32Bits(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >>> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0x1f) return sign | 0x7f800000 | (fraction << 13);
  if (exponent !== 0) return sign | ((exponent + 112) << 23) | (fraction << 13);
  if (fraction === 0) return sign;
  // A subnormal is fraction · 2^-24: shift its leading one up to the implicit bit.
  const shift = Math.clz32(fraction) - 21;
  return sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13);
}
