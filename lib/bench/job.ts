/**
 * The measured operation, at one size, and the operations and bytes that its maths needs.
 */

import { GGUF_TYPES } from '../checkpoint/gguf/block-types.js';
import { type GgufBlockType, ggufBlockTypes } from '../checkpoint/gguf/blocks/parts.js';
import {
  formatOf,
  type QuantFormat,
  type StoredFormat,
  storedNames,
  wholeInt4Blocks,
} from '../core/formats.js';
import type { Device, DType } from '../index.js';

export const benchOps = ['matmul', 'loraForward', 'loraBackward', 'lora'] as const;
export type BenchOp = (typeof benchOps)[number];

/** A block type of GGUF in lower case, as commands spell it. */
export type BlockFormat = Lowercase<GgufBlockType>;
export type WeightFormat = StoredFormat | BlockFormat | 'none';

const lowerCase = (type: GgufBlockType) => type.toLowerCase() as BlockFormat;
/** TQ2_0 holds three values, and the operands of the benchmark have many: its result would count as wrong. */
const blockFormats = new Map(
  ggufBlockTypes.filter((type) => type !== 'TQ2_0').map((type) => [lowerCase(type), type]),
);
/** This library's own formats, and no format. */
export const ownFormats: readonly WeightFormat[] = [...storedNames, 'none'];
export const blockFormatNames: readonly WeightFormat[] = [...blockFormats.keys()];

/** The type of GGUF that a format names, if it is one. */
export function ggufTypeOf(format: WeightFormat): GgufBlockType | undefined {
  return blockFormats.get(format as BlockFormat);
}
export const benchDtypes = ['f32', 'bf16', 'f16'] as const;

/** One measurement, for any subject. */
export interface Job {
  readonly op: BenchOp;
  /** `Llama-3.2-1B q`, if the size is that of a layer; for people. */
  readonly layer?: string;
  readonly M: number;
  readonly K: number;
  readonly N: number;
  readonly r: number;
  readonly format: WeightFormat;
  /** Dtype of the activations. */
  readonly dtype: DType;
  readonly threads: number;
  readonly device: Device;
  /**
   * Weights are rotated so that one round reads at least this many bytes; 0: one weight, which stays
   * in the cache if it fits.
   */
  readonly coldBytes: number;
}

/** `alpha / r` of every adapter in the benchmark. */
export const kScaling = 2;

/** Floating-point operations of a job: what the maths needs, not what an implementation does. */
export function flopsOf({ op, M, K, N, r }: Job): number {
  const base = 2 * M * N * K;
  const low = 2 * M * r * (K + N);
  switch (op) {
    case 'matmul':
      return base;
    case 'loraForward':
      return base + low;
    case 'loraBackward':
      return base + 2 * low;
    case 'lora':
      return 2 * base + 3 * low;
  }
}

export function bytesOfType(dtype: DType): number {
  return dtype === 'f32' ? 4 : 2;
}

/** Bytes of a weight: of the blocks of a GGUF file, or in this library's formats with f32 scales (and zero-points of int4). */
export function weightBytesOf({ K, N, format, dtype }: Job): number {
  if (format === 'none') return K * N * bytesOfType(dtype);
  if (format === 'int8-rowwise') return K * N + 4 * N;
  const type = ggufTypeOf(format);
  if (type !== undefined) return (K * N * GGUF_TYPES[type].bytes) / GGUF_TYPES[type].elements;
  const { bits, defaultBlocksize } = formatOf(format as QuantFormat);
  const perBlock = format === 'int4' && wholeInt4Blocks(K) ? 8 : 4;
  return (K * N * bits) / 8 + perBlock * Math.ceil((K * N) / defaultBlocksize);
}

/** Bytes that must cross the memory bus: weight and activations once per pass, factors in f32. */
export function bytesOf(job: Job, weightBytes: number): number {
  const { op, M, K, N, r } = job;
  const activations = bytesOfType(job.dtype) * M * (K + N);
  const factors = 4 * r * (K + N);
  switch (op) {
    case 'matmul':
      return weightBytes + activations;
    case 'loraForward':
      return weightBytes + activations + factors;
    case 'loraBackward':
      return weightBytes + activations + bytesOfType(job.dtype) * M * K + 2 * factors;
    case 'lora':
      return 2 * weightBytes + 2 * activations + bytesOfType(job.dtype) * M * K + 3 * factors;
  }
}

/** Maximum number of copies of a weight: a model of weights this small fits the cache. */
const kMostCopies = 256;
/** With more tokens a product is bound by arithmetic, so one weight is enough. */
const kFewTokens = 64;

/** The bytes to rotate over if a job's weights should be cold: twice the last-level cache. */
export function coldBytesFor(M: number, weightBytes: number, lastCacheBytes: number): number {
  const bytes = 2 * lastCacheBytes;
  return M <= kFewTokens && bytes / weightBytes <= kMostCopies ? bytes : 0;
}

/** The number of copies of a weight of this size that a job rotates over. */
export function copiesFor(job: Job, weightBytes: number): number {
  return Math.min(kMostCopies, Math.max(1, Math.ceil(job.coldBytes / weightBytes)));
}

/** `lora M=64 K=2048 N=2048 r=16 nf4 f32`: the same job in another run has the same name. */
export function jobName(job: Job): string {
  const { op, M, K, N, r, format, dtype, threads, device } = job;
  const rank = op === 'matmul' ? '' : ` r=${r}`;
  const layer = job.layer === undefined ? '' : ` ${job.layer}`;
  const many = `${threads} thread${threads === 1 ? '' : 's'}`;
  return `${op}${layer} M=${M} K=${K} N=${N}${rank} ${format} ${dtype} ${device}, ${many}`;
}
