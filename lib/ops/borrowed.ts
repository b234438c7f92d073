/**
 * Ops on Float32Arrays of the caller: nothing is copied, and the result is there when the call returns. Host devices
 * only. The arrays may lie in any memory, such as the heap of a WebAssembly module.
 */

import { native } from '../core/binding.js';
import type { Device } from '../core/device.js';
import { refuseInStep } from '../core/recording.js';
import { seedWords } from '../core/validate.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import { type BaseWeight, checkWeight } from './base-weight.js';
import { zeroTermOf } from './zero-points.js';

/** @internal Does a device compute in host memory? */
export function isHostDevice(device: Device): boolean {
  return device === 'cpu' || device === 'reference';
}

/**
 * @internal May ops borrow operands beside this weight? It lies in host memory, its products need no further terms, and
 * f32 activations mix with it.
 */
export function takesBorrowed(w: BaseWeight): boolean {
  if (!isHostDevice(w.device) || zeroTermOf(w) !== undefined) return false;
  return QuantizedWeight.is(w) || w.dtype === 'f32';
}

const kForms = { abT: 0, ab: 1, aTb: 2 } as const;

/** @internal A product of borrowed matrices; see {@link multiplyBorrowed}. */
export interface BorrowedProduct {
  /** `abT`: a [M, K] · (b [N, K])ᵀ, `ab`: a [M, K] · b [K, N], `aTb`: (a [K, M])ᵀ · b [K, N]. */
  readonly form: keyof typeof kForms;
  readonly M: number;
  readonly N: number;
  readonly K: number;
  /** [N], with `abT`. */
  readonly bias?: Float32Array | undefined;
  /** For each matrix of the result, the numbers of the matrices of a and b; default: one of each. */
  readonly pairs?: Int32Array | undefined;
}

/**
 * @internal out = product of a and b.
 * @param b for `abT` and `ab` also a weight of the same sizes
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE (pairs), ERR_ALIAS (`out` overlaps an operand), ERR_DEVICE, ERR_DISPOSED (a
 * detached array), ERR_UNSUPPORTED
 */
export function multiplyBorrowed(
  device: Device,
  { form, M, N, K, bias, pairs }: BorrowedProduct,
  a: Float32Array,
  b: Float32Array | BaseWeight,
  out: Float32Array,
): void {
  const op = 'multiply';
  refuseInStep(op, device, 'host');
  const right = rawWeight(op, b);
  native(op, (raw) =>
    raw.multiplyBorrowed(device, kForms[form], a, right, out, M, N, K, bias ?? null, pairs ?? null),
  );
}

/** @internal A base weight [N, K], or its values in memory of the caller. */
export type LoraWeight = BaseWeight | Float32Array;

const rawWeight = (op: string, w: LoraWeight) =>
  ArrayBuffer.isView(w) ? w : checkWeight(op, w).handle;

/** @internal The settings of a LoRA layer's pass on borrowed memory. */
export interface BorrowedLora {
  readonly device: Device;
  readonly M: number;
  readonly r: number;
  readonly scaling: number;
  readonly dropout: number;
  readonly seed: number;
}

/**
 * @internal y = x · wᵀ + bias + scaling · h · loraBᵀ, with h = dropout(x) · loraAᵀ. Writes h [M, r] and y [M, N].
 * @throws as {@link multiplyBorrowed}
 */
export function loraForwardBorrowed(
  w: LoraWeight,
  { device, M, r, scaling, dropout, seed }: BorrowedLora,
  operands: {
    readonly x: Float32Array;
    readonly bias: Float32Array | undefined;
    readonly loraA: Float32Array;
    readonly loraB: Float32Array;
  },
  h: Float32Array,
  y: Float32Array,
): void {
  const op = 'loraForward';
  refuseInStep(op, device, 'host');
  const weight = rawWeight(op, w);
  const [low, high] = seedWords(op, seed);
  const { x, bias, loraA, loraB } = operands;
  native(op, (raw) =>
    raw.loraForwardBorrowed(
      device,
      weight,
      M,
      r,
      x,
      bias ?? null,
      loraA,
      loraB,
      scaling,
      dropout,
      low,
      high,
      h,
      y,
    ),
  );
}

/** @internal What {@link loraBackwardBorrowed} writes; what is absent is not computed. */
export interface BorrowedGradients {
  readonly dx?: Float32Array | undefined;
  /** Needs x. */
  readonly dLoraA?: Float32Array | undefined;
  /** Needs h. */
  readonly dLoraB?: Float32Array | undefined;
  readonly dBias?: Float32Array | undefined;
}

/**
 * @internal The gradients of {@link loraForwardBorrowed}.
 * @throws as {@link multiplyBorrowed}
 */
export function loraBackwardBorrowed(
  w: LoraWeight,
  { device, M, r, scaling, dropout, seed }: BorrowedLora,
  operands: {
    readonly dy: Float32Array;
    readonly x: Float32Array | undefined;
    readonly loraA: Float32Array;
    readonly loraB: Float32Array;
    readonly h: Float32Array | undefined;
  },
  { dx, dLoraA, dLoraB, dBias }: BorrowedGradients,
): void {
  const op = 'loraBackward';
  refuseInStep(op, device, 'host');
  const weight = rawWeight(op, w);
  const [low, high] = seedWords(op, seed);
  const { dy, x, loraA, loraB, h } = operands;
  native(op, (raw) =>
    raw.loraBackwardBorrowed(
      device,
      weight,
      M,
      r,
      dy,
      x ?? null,
      loraA,
      loraB,
      h ?? null,
      scaling,
      dropout,
      low,
      high,
      dx ?? null,
      dLoraA ?? null,
      dLoraB ?? null,
      dBias ?? null,
    ),
  );
}
