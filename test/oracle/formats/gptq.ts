/** GPTQ: codes along K in words of 32 bits, zero-points along N, a group for every column. */
import { transposeBytes, unpackStream } from './bits.js';
import { scaled } from './scaled.js';
import { type DiskTensor, dim, numbersOf } from './tensors.js';

export interface GptqTensors {
  readonly qweight: DiskTensor; // I32 [K · bits / 32, N]
  readonly qzeros: DiskTensor; // I32 [groups, N · bits / 32]
  readonly scales: DiskTensor; // F16 [groups, N]
  readonly g_idx: DiskTensor; // I32 [K]
}

export interface GptqConfig {
  readonly bits: number;
  /** `gptq` (version 1) stores each zero-point less one, `gptq_v2` as it is. */
  readonly checkpoint_format: string;
}

/** Codes [N, K]. */
export function gptqCodes({ qweight, g_idx }: GptqTensors, { bits }: GptqConfig): Uint8Array {
  const [words, N] = [dim(qweight, 0), dim(qweight, 1)];
  return unpackStream(transposeBytes(qweight.bytes, words, N, 4), N, bits, dim(g_idx, 0));
}

/**
 * Zero-points [groups, N]. Version 1 adds the missing one to whole words, so that a field of all ones
 * carries into its neighbour; `byField` (and 3 bits) adds it to each field alone.
 */
export function gptqZeros(tensors: GptqTensors, config: GptqConfig, byField = false): Uint8Array {
  const { qzeros, scales } = tensors;
  const { bits, checkpoint_format } = config;
  const fields = (bytes: Uint8Array) => unpackStream(bytes, dim(qzeros, 0), bits, dim(scales, 1));
  if (checkpoint_format === 'gptq_v2') return fields(qzeros.bytes);
  if (byField || bits === 3) return fields(qzeros.bytes).map((zero) => (zero + 1) % 2 ** bits);
  const ones = (2 ** 32 - 1) / (2 ** bits - 1);
  const words = Uint32Array.from(new Uint32Array(qzeros.bytes.buffer), (word) => word + ones);
  return fields(new Uint8Array(words.buffer));
}

/** scale · (code - zero) of group g_idx[k]. */
export function decodeGptq(tensors: GptqTensors, config: GptqConfig, byField = false) {
  const { scales, g_idx } = tensors;
  const N = dim(scales, 1);
  const groups = numbersOf(g_idx);
  const zeros = gptqZeros(tensors, config, byField);
  const values = numbersOf(scales);
  const at = (n: number, k: number): number => (groups[k] as number) * N + n;
  return scaled(
    gptqCodes(tensors, config),
    groups.length,
    (n, k) => values[at(n, k)] as number,
    (n, k) => zeros[at(n, k)] as number,
  );
}
