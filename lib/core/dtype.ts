import { fail, wrongType } from './errors.js';

/** Element types of tensors. Arithmetic accumulates in f32 whatever the storage. */
export type DType = 'f32' | 'bf16' | 'f16';

const DTYPES: readonly DType[] = ['f32', 'bf16', 'f16'];

/** Bytes of one element. */
export function dtypeBytes(dtype: DType): number {
  return dtype === 'f32' ? 4 : 2;
}

/** @throws ERR_TYPE, ERR_DTYPE */
export function checkDType(op: string, operand: string, dtype: unknown): DType {
  if (typeof dtype !== 'string') throw wrongType(op, operand, 'f32, bf16 or f16', dtype);
  if (!DTYPES.includes(dtype as DType)) {
    fail('ERR_DTYPE', op, operand, 'f32, bf16 or f16', `"${dtype}"`);
  }
  return dtype as DType;
}
