/** Golden tensors in and out of the library, on a device. */
import {
  type BaseWeight,
  type Device,
  type DType,
  QuantizedWeight,
  Tensor,
} from '../../lib/index.js';
import { type GoldenCase, type GoldenTensor, numbersOf } from './case-file.js';

const DTYPES: Partial<Record<GoldenTensor['dtype'], DType>> = {
  F32: 'f32',
  BF16: 'bf16',
  F16: 'f16',
};

/** A golden float tensor as it is; masks and other integers as f32. */
export function tensorOf(golden: GoldenTensor, device: Device): Tensor {
  const dtype = DTYPES[golden.dtype];
  if (dtype === undefined) return Tensor.from(numbersOf(golden), golden.shape, { device });
  const data =
    dtype === 'f32' ? new Float32Array(golden.bytes.buffer) : new Uint16Array(golden.bytes.buffer);
  return Tensor.from(data, golden.shape, { dtype, device });
}

export const dtypeNames: Record<string, DType> = { f32: 'f32', bf16: 'bf16', f16: 'f16' };
const TORCH_NAMES: Record<DType, string> = { f32: 'float32', bf16: 'bfloat16', f16: 'float16' };

export interface WeightParts {
  readonly format: 'nf4' | 'fp4' | 'int8';
  readonly blocksize: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly codes: Uint8Array;
  readonly codebook: Float32Array;
  readonly absmax?: Float32Array;
  readonly nested?: {
    readonly absmax8bit: Uint8Array;
    readonly nestedAbsmax: Float32Array;
    readonly nestedCodebook: Float32Array;
    readonly offset: number;
  };
}

type State = Parameters<typeof QuantizedWeight.fromBitsandbytes>[0];

/** The peer's checkpoint tensors of one weight. */
export function stateOf(parts: WeightParts): State {
  const { format, blocksize, dtype, shape, codes, codebook, absmax, nested } = parts;
  const json = {
    quant_type: format,
    blocksize,
    dtype: TORCH_NAMES[dtype],
    shape: [...shape],
    ...(nested === undefined
      ? {}
      : { nested_blocksize: 256, nested_dtype: 'float32', nested_offset: nested.offset }),
  };
  const text = new TextEncoder().encode(JSON.stringify(json));
  const f32 = (data: Float32Array) => ({ dtype: 'F32' as const, shape: [data.length], data });
  const u8 = (data: Uint8Array) => ({ dtype: 'U8' as const, shape: [data.length], data });
  const scales =
    nested === undefined
      ? { 'weight.absmax': f32(absmax ?? new Float32Array()) }
      : {
          'weight.absmax': u8(nested.absmax8bit),
          'weight.nested_absmax': f32(nested.nestedAbsmax),
          'weight.nested_quant_map': f32(nested.nestedCodebook),
        };
  return {
    weight: { dtype: 'U8', shape: [codes.length, 1], data: codes },
    'weight.quant_map': f32(codebook),
    ...scales,
    [`weight.quant_state.bitsandbytes__${format}`]: u8(text),
  };
}

export function weightOf(parts: WeightParts, device: Device): QuantizedWeight {
  return QuantizedWeight.fromBitsandbytes(stateOf(parts), { device });
}

/** f32 view of a golden tensor. */
export function floats(golden: GoldenTensor): Float32Array {
  return new Float32Array(golden.bytes.buffer);
}

/** The raw bytes of typed data. */
export function bytesOf(data: ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** The base weight of layer `name` of a case: dense, or quantised as the peer stored it. */
export function baseWeight(golden: GoldenCase, name: string, device: Device): BaseWeight {
  const base = golden.tensor(`base.${name}.weight`);
  if (base.dtype !== 'U8' && base.dtype !== 'I8') return tensorOf(base, device);
  const prefix = `base.${name}.`;
  const state = Object.fromEntries(
    [...golden.tensors]
      .filter(([key]) => key.startsWith(`${prefix}weight`) || key === `${prefix}SCB`)
      .map(([key, { dtype, shape, bytes }]) => [
        key.slice(prefix.length),
        {
          dtype: dtype as 'U8',
          shape: [...shape],
          data:
            dtype === 'U8'
              ? bytes
              : dtype === 'I8'
                ? new Int8Array(bytes.buffer)
                : new Float32Array(bytes.buffer),
        },
      ]),
  );
  return QuantizedWeight.fromBitsandbytes(state, { device });
}
