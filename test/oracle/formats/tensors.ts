/** Tensors as they lie in a checkpoint: raw little-endian bytes with a dtype and a shape. */
import { decodeAll } from '../dtypes.js';
import { decodeMinifloats, e8m0 } from './minifloat.js';

export interface DiskTensor {
  readonly dtype:
    | 'U8'
    | 'I8'
    | 'BF16'
    | 'F16'
    | 'F32'
    | 'F64'
    | 'I32'
    | 'I64'
    | 'F8_E4M3'
    | 'F8_E5M2'
    | 'F8_E8M0';
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** The values of a tensor as doubles. */
export function numbersOf({ dtype, bytes }: DiskTensor): Float64Array {
  const { buffer } = bytes;
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer);
    case 'F32':
      return Float64Array.from(new Float32Array(buffer));
    case 'BF16':
      return decodeAll('bf16', new Uint16Array(buffer));
    case 'F16':
      return decodeAll('f16', new Uint16Array(buffer));
    case 'I8':
      return Float64Array.from(new Int8Array(buffer));
    case 'I32':
      return Float64Array.from(new Int32Array(buffer));
    case 'I64':
      return Float64Array.from(new BigInt64Array(buffer), Number);
    case 'F8_E4M3':
      return Float64Array.from(decodeMinifloats('e4m3fn', bytes));
    case 'F8_E5M2':
      return Float64Array.from(decodeMinifloats('e5m2', bytes));
    case 'F8_E8M0':
      return Float64Array.from(bytes, e8m0);
    case 'U8':
      return Float64Array.from(bytes);
  }
}

/** Length of dimension `axis`, counted from the end where it is negative; 1 where there is none. */
export const dim = ({ shape }: DiskTensor, axis: number): number => shape.at(axis) ?? 1;

export const sizeOf = ({ shape }: DiskTensor): number => shape.reduce((size, n) => size * n, 1);
