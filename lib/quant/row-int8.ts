import { fail } from '../core/errors.js';

/** A weight [N, K] as bitsandbytes' LLM.int8 stores it. */
export interface RowInt8 {
  /** [N, K], each within ±127 */
  readonly codes: Int8Array;
  /** [N]: the largest magnitude of each row, bitsandbytes' `SCB`. */
  readonly absmax: Float32Array;
}

/** What QuantizedWeight keeps of it: codes + 128, and a table of 256 levels `(code - 128) / 127`. */
export const ROW_CODEBOOK: Float32Array = Float32Array.from(
  { length: 256 },
  (_, code) => (code - 128) / 127,
);
const ZERO = 128;

/** To the nearest, ties to even; |v| is at most 127. */
function roundHalfEven(v: number): number {
  const down = Math.floor(v);
  const rest = v - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/**
 * Codes of some rows, as bitsandbytes has them: `code = round(v · (127 / absmax))`, each operation rounded to f32,
 * ties to even (Dettmers et al., LLM.int8(), 2022, arXiv:2208.07339). A row of zeros has codes of 0.
 * @param values [rows, K] of f16: bitsandbytes rounds to it first, whatever the weight is
 * @throws ERR_NON_FINITE
 */
export function encodeRows(op: string, values: Float32Array, K: number): RowInt8 {
  const rows = K === 0 ? 0 : values.length / K;
  const codes = new Int8Array(values.length);
  const absmax = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    let most = 0;
    for (let i = row * K; i < (row + 1) * K; i++) {
      const size = Math.abs(values[i] as number);
      if (!Number.isFinite(size)) {
        fail('ERR_NON_FINITE', op, 'w', 'finite values', `${values[i]} at ${i}`);
      }
      if (size > most) most = size;
    }
    absmax[row] = most;
    if (most === 0) continue;
    const scale = Math.fround(127 / most);
    for (let i = row * K; i < (row + 1) * K; i++) {
      codes[i] = roundHalfEven(Math.fround((values[i] as number) * scale));
    }
  }
  return { codes, absmax };
}

/**
 * Elements that share a stored scale: as many of a row as a block may have. A row has K / blocksize blocks, all of
 * its scale.
 * @throws ERR_SHAPE where no block ends with a row
 */
export function rowBlocksize(op: string, K: number, least: number, most: number): number {
  let blocksize = most;
  while (blocksize >= least && K % blocksize !== 0) blocksize /= 2;
  if (blocksize < least || K === 0) {
    fail('ERR_SHAPE', op, 'w', `of rows that are a multiple of ${least}`, `rows of ${K}`);
  }
  return blocksize;
}

/** The stored parts of a weight: codes [N, K], scales [N · K / blocksize]. */
export function storeRows(
  { codes, absmax }: RowInt8,
  K: number,
  blocksize: number,
): { codes: Uint8Array; codebook: Float32Array; absmax: Float32Array } {
  const each = K / blocksize;
  return {
    codes: Uint8Array.from(codes, (code) => code + ZERO),
    codebook: ROW_CODEBOOK,
    absmax: Float32Array.from(
      { length: absmax.length * each },
      (_, block) => absmax[Math.floor(block / each)] as number,
    ),
  };
}

/** The inverse of {@link storeRows}. */
export function loadRows(
  codes: Uint8Array,
  absmax: Float32Array,
  K: number,
  blocksize: number,
): RowInt8 {
  const each = K / blocksize;
  return {
    codes: Int8Array.from(codes, (code) => code - ZERO),
    absmax: absmax.filter((_, block) => block % each === 0),
  };
}
