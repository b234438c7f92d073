/** What the addon exports for memory of the caller (native/addon/borrowed), as untyped as it comes. */

import type { NativeHandle } from './binding-model.js';

export interface BorrowedBinding {
  /** `form` 0: a · bᵀ (+ bias), 1: a · b, 2: aᵀ · b. A handle as b is a weight. */
  multiplyBorrowed(
    device: string,
    form: 0 | 1 | 2,
    a: Float32Array,
    b: Float32Array | NativeHandle,
    out: Float32Array,
    M: number,
    N: number,
    K: number,
    bias: Float32Array | null,
    pairs: Int32Array | null,
  ): void;
  loraForwardBorrowed(
    device: string,
    w: NativeHandle | Float32Array,
    M: number,
    r: number,
    x: Float32Array,
    bias: Float32Array | null,
    loraA: Float32Array,
    loraB: Float32Array,
    scaling: number,
    dropout: number,
    seedLow: number,
    seedHigh: number,
    h: Float32Array,
    y: Float32Array,
  ): void;
  loraBackwardBorrowed(
    device: string,
    w: NativeHandle | Float32Array,
    M: number,
    r: number,
    dy: Float32Array,
    x: Float32Array | null,
    loraA: Float32Array,
    loraB: Float32Array,
    h: Float32Array | null,
    scaling: number,
    dropout: number,
    seedLow: number,
    seedHigh: number,
    dx: Float32Array | null,
    dLoraA: Float32Array | null,
    dLoraB: Float32Array | null,
    dBias: Float32Array | null,
  ): void;
}
