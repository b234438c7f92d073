/** What the addon exports for quantised weights (native/addon/weights), as untyped as it comes. */

import type { NativeHandle } from './binding-model.js';

/** A typed array as the addon reads or fills it. */
export type HostArray = Float32Array | Float64Array | Uint16Array | Uint8Array;

/** How the planes of a weight lie in the arrays beside it. Types are `f32`, `bf16`, `f16` or `u8`. */
export interface RawPlanes {
  readonly bits: number;
  readonly grid: 'tiles' | 'flat' | 'ordered' | 'cyclic';
  readonly gridRows: number;
  readonly gridSpan: number;
  readonly gridPitch: number;
  readonly scale: string;
  readonly scaleOuter?: string;
  readonly scaleOuterSpan?: number;
  readonly scaleOffset?: number;
  readonly min?: string;
  readonly minOuter?: string;
  readonly minOuterSpan?: number;
  readonly minOffset?: number;
  readonly zero?: string;
}

export interface WeightBinding {
  quantize(
    w: NativeHandle,
    format: string,
    blocksize: number,
    doubleQuant: boolean,
    rowwise: boolean,
  ): NativeHandle;
  weightFromParts(
    device: string,
    format: string,
    rows: number,
    cols: number,
    blocksize: number,
    nestedBlocksize: number,
    parts: Record<string, HostArray | undefined>,
    rowwise?: boolean,
  ): NativeHandle;
  weightFromPlanes(
    device: string,
    rows: number,
    cols: number,
    layout: RawPlanes,
    parts: Record<string, HostArray | Int32Array | undefined>,
  ): NativeHandle;
  /** One field of a layout of bits: `sizes` are rows, columns, base, row stride, run bytes and threads. */
  readFields(
    bytes: Uint8Array,
    codes: Uint8Array,
    sizes: Float64Array,
    rowAt: Float64Array,
    byte: Uint32Array,
    bit: Uint8Array,
    mask: Uint8Array,
    shift: Uint8Array,
  ): void;
  packPairs(codes: Uint8Array, pairs: Uint8Array, threads: number): void;
  largestCode(codes: Uint8Array): number;
  dequantize(w: NativeHandle, dtype: string): NativeHandle;
  emptyLike(w: NativeHandle): NativeHandle;
  quantizeRows(
    tile: NativeHandle,
    w: NativeHandle,
    first: number,
    absmax: NativeHandle | null,
  ): void;
  quantizeScales(absmax: NativeHandle, w: NativeHandle): void;
  weightNorms(w: NativeHandle): NativeHandle;
  /** `dtype` is that of the product with w. */
  factoredNorm(
    loraA: NativeHandle,
    w: NativeHandle,
    loraB: NativeHandle,
    squares: NativeHandle,
    dtype: string,
    scaling: number,
  ): NativeHandle;
  putRows(y: NativeHandle, source: NativeHandle, begin: number): void;
  takeRows(w: NativeHandle, dtype: string, begin: number, count: number): NativeHandle;
  formats(): Array<{
    name: string;
    bits: number;
    levels: number;
    signMagnitude: boolean;
    minBlocksize: number;
    maxBlocksize: number;
    defaultBlocksize: number;
    codebook: Float32Array;
  }>;
}
