import type { RowInt8 } from '../checkpoint/bitsandbytes/row-int8-state.js';
import { fail } from '../core/errors.js';

/** Kernels read the codes of a row eight at a time. */
export const LEAST_ROW_BLOCK = 8;

/** QuantizedWeight stores codes + 128. */
const ZERO = 128;

/**
 * Number of elements that share a stored scale: as many elements of a row as a block may have. A row has K /
 * blocksize blocks, all with its scale.
 * @throws ERR_SHAPE if K is not a multiple of `least`
 */
export function rowBlocksize(op: string, K: number, least: number, most: number): number {
  let blocksize = most;
  while (blocksize >= least && K % blocksize !== 0) blocksize /= 2;
  if (blocksize < least || K === 0) {
    fail('ERR_SHAPE', op, 'w', `of a K that is a multiple of ${least}`, `K = ${K}`);
  }
  return blocksize;
}

/** Converts to the stored parts of a weight: codes [N, K], scales [N · K / blocksize]. */
export function storeRows(
  { codes, absmax }: RowInt8,
  K: number,
  blocksize: number,
): { codes: Uint8Array; absmax: Float32Array } {
  const each = K / blocksize;
  // Loops, because a callback per element takes a second for a layer of 4,096 x 4,096.
  const stored = new Uint8Array(codes.length);
  for (let i = 0; i < codes.length; i++) stored[i] = (codes[i] as number) + ZERO;
  const scales = new Float32Array(absmax.length * each);
  absmax.forEach((scale, row) => {
    scales.fill(scale, row * each, (row + 1) * each);
  });
  return { codes: stored, absmax: scales };
}

/** The inverse of {@link storeRows}. */
export function loadRows(
  codes: Uint8Array,
  absmax: Float32Array,
  K: number,
  blocksize: number,
): RowInt8 {
  const each = K / blocksize;
  const loaded = new Int8Array(codes.length);
  for (let i = 0; i < codes.length; i++) loaded[i] = (codes[i] as number) - ZERO;
  return { codes: loaded, absmax: absmax.filter((_, block) => block % each === 0) };
}
