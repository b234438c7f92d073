/** AWQ, 4 bits. GEMM packs along N in an order of its own, GEMV along K in plain order. */
import { transposeBytes, unpackStream } from './bits.js';
import { scaled } from './scaled.js';
import { type DiskTensor, dim, numbersOf } from './tensors.js';

export interface AwqTensors {
  readonly qweight: DiskTensor; // I32 [K, N / 8]; GEMV [N, K / 8]
  readonly qzeros: DiskTensor; // I32 [groups, N / 8]; GEMV [N, words]
  readonly scales: DiskTensor; // F16 [groups, N]; GEMV [N, 8 · words]
}

export interface AwqConfig {
  readonly version: string;
  /** -1: all of K. */
  readonly group_size: number;
}

/** Row of 8 for each place of a word, from the low bits. */
const ORDER = [0, 2, 4, 6, 1, 3, 5, 7] as const;

const PER_WORD = ORDER.length;
const BITS = 32 / PER_WORD;

/** Every code of a tensor of words: [rows, columns]. */
function fields(tensor: DiskTensor): Uint8Array {
  return unpackStream(tensor.bytes, dim(tensor, 0), BITS, PER_WORD * dim(tensor, 1));
}

/** GEMM's fields as [N, rows]. */
function gemmFields(tensor: DiskTensor): Uint8Array {
  const stored = fields(tensor);
  const ordered = new Uint8Array(stored.length);
  stored.forEach((code, i) => {
    const place = i % PER_WORD;
    ordered[i - place + (ORDER[place] as number)] = code;
  });
  return transposeBytes(ordered, dim(tensor, 0), PER_WORD * dim(tensor, 1));
}

const isGemv = ({ version }: AwqConfig): boolean => version === 'gemv';

/** Codes [N, K]. */
export const awqCodes = ({ qweight }: AwqTensors, config: AwqConfig): Uint8Array =>
  isGemv(config) ? fields(qweight) : gemmFields(qweight);

/** Zero-points [N, groups]; GEMV's rows are padded to whole words. */
export const awqZeros = ({ qzeros }: AwqTensors, config: AwqConfig): Uint8Array =>
  isGemv(config) ? fields(qzeros) : gemmFields(qzeros);

/** scale · (code - zero). */
export function decodeAwq(tensors: AwqTensors, config: AwqConfig): Float32Array {
  const { scales } = tensors;
  const gemv = isGemv(config);
  const N = dim(scales, gemv ? 0 : 1);
  const codes = awqCodes(tensors, config);
  const zeros = awqZeros(tensors, config);
  const K = codes.length / N;
  const span = config.group_size === -1 ? K : config.group_size;
  const values = numbersOf(scales);
  const zeroPitch = zeros.length / N;
  const [stepN, stepGroup] = gemv ? [dim(scales, 1), 1] : [1, N];
  const group = (k: number): number => Math.floor(k / span);
  return scaled(
    codes,
    K,
    (n, k) => values[n * stepN + group(k) * stepGroup] as number,
    (n, k) => zeros[n * zeroPitch + group(k)] as number,
  );
}
