/** HQQ: the weight reshaped to groups, packed by parts of the first dimension, zero-points fractions. */
import { scaled } from './scaled.js';
import { type DiskTensor, numbersOf } from './tensors.js';

export interface HqqTensors {
  readonly W_q: DiskTensor; // U8, or I32 for 3 bits
  readonly scale: DiskTensor;
  readonly zero: DiskTensor;
}

export interface HqqConfig {
  readonly nbits: number;
  readonly group_size: number;
  /** 1: groups are rows of [N · K / g, g]; 0: columns of [g, N · K / g]. */
  readonly axis: number;
  readonly shape: readonly [N: number, K: number];
}

/** Codes in the order of the reshaped weight: of every word the high field first, then the next. */
export function hqqCodes({ W_q }: HqqTensors, { nbits, shape }: HqqConfig): Uint8Array {
  const words = numbersOf(W_q);
  const parts = Math.floor((W_q.dtype === 'I32' ? 32 : 8) / nbits);
  return Uint8Array.from({ length: shape[0] * shape[1] }, (_, i) => {
    const part = Math.floor(i / words.length);
    const word = words[i % words.length] as number;
    return Math.floor(word / 2 ** (nbits * (parts - 1 - part))) % 2 ** nbits;
  });
}

/** (code - zero) · scale. */
export function decodeHqq(tensors: HqqTensors, config: HqqConfig): Float32Array {
  const { group_size, axis, shape } = config;
  const [N, K] = shape;
  const groups = (N * K) / group_size;
  const group = (n: number, k: number): number =>
    axis === 1 ? Math.floor((n * K + k) / group_size) : (n * K + k) % groups;
  const [scale, zero] = [numbersOf(tensors.scale), numbersOf(tensors.zero)];
  return scaled(
    hqqCodes(tensors, config),
    K,
    (n, k) => scale[group(n, k)] as number,
    (n, k) => zero[group(n, k)] as number,
  );
}
