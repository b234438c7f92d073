import type { PlanarWeight } from '../checkpoint/planar/planar-weight.js';
import { choleskyRows } from '../linalg/cholesky.js';
import { rangeGrid } from './group-ranges.js';

/** How {@link quantizeGptq} works. */
export interface GptqOptions {
  /** Bits of a code, 1 to 8. */
  readonly bits: number;
  /** Elements of a group, a divisor of K. */
  readonly groupSize: number;
}

/**
 * The upper factor R of `h = R · Rᵀ`, turned: row k has column k of R. Undefined if h is not positive definite.
 * @param h [K, K], row by row
 */
function upperFactor(h: Float64Array, K: number): Float64Array | undefined {
  const reversed = new Float64Array(K * K);
  for (let i = 0; i < K; i++) {
    for (let j = 0; j < K; j++) reversed[(K - 1 - i) * K + (K - 1 - j)] = h[i * K + j] as number;
  }
  const { l, failed } = choleskyRows(reversed, K);
  if (failed !== undefined) return undefined;
  const turned = new Float64Array(K * K);
  for (let k = 0; k < K; k++) {
    for (let j = 0; j <= k; j++) turned[k * K + j] = l[(K - 1 - j) * K + (K - 1 - k)] as number;
  }
  return turned;
}

/**
 * Integers of which each makes up for the rounding of those before it in its row, so that the error `(w − q) · h · (w − q)ᵀ` stays
 * small (Frantar et al., GPTQ, 2022, arXiv:2210.17323): with h = R · Rᵀ, R upper, and the errors e of the features before k,
 * `qₖ = round(wₖ + Σⱼ eⱼ · Rⱼₖ / Rₖₖ)`. Steps and zero-points are those of the groups of w.
 * @param values [N, K], row by row
 * @param h [K, K] second moments of the inputs, damped
 * @returns undefined if h is not positive definite
 */
export function quantizeGptq(
  values: Float32Array,
  rows: number,
  columns: number,
  h: Float64Array,
  { bits, groupSize }: GptqOptions,
): PlanarWeight | undefined {
  const K = columns;
  const factor = upperFactor(h, K);
  if (factor === undefined) return undefined;
  const grid = rangeGrid(values, groupSize, bits);
  const top = 2 ** bits - 1;
  const codes = new Uint8Array(values.length);
  const errors = new Float64Array(K);
  for (let n = 0; n < rows; n++) {
    for (let k = 0; k < K; k++) {
      const at = k * K;
      let owed = 0;
      for (let j = 0; j < k; j++) owed += (errors[j] as number) * (factor[at + j] as number);
      const value = values[n * K + k] as number;
      const group = Math.floor((n * K + k) / groupSize);
      const [scale, zero] = [grid.scale[group] as number, grid.zero[group] as number];
      const steps = Math.round((value + owed / (factor[at + k] as number)) / scale) + zero;
      const code = Math.min(Math.max(steps, 0), top);
      codes[n * K + k] = code;
      errors[k] = value - scale * (code - zero);
    }
  }
  return {
    rows,
    columns,
    bits,
    codes,
    levels: Float32Array.from({ length: top + 1 }, (_, i) => i),
    grid: { kind: 'tiles', rows: 1, columns: groupSize },
    scale: { values: { dtype: 'f32', data: grid.scale } },
    zero: { dtype: 'u8', data: grid.zero },
  };
}
