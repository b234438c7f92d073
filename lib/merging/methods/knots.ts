import { rowBasis } from '../../linalg/factored-svd.js';
import { rowDots, transposed } from '../../linalg/rows.js';
import { smallSvd } from '../../linalg/small-svd.js';
import { defineMerge, type LoraUpdate, type MergeCall } from '../definition/definition.js';
import { meanOfSign } from '../parts/elect.js';
import { checkRank, fromTriplets, stackedRows, truncatedSum } from '../parts/factors.js';
import { checkDensity, keepFromBound } from '../parts/prune.js';

/** Smaller singular values are left out. */
const kSmallest = 1e-5;

interface KnotsSettings {
  readonly density: number;
  readonly scale: number;
  readonly rank: number;
}

/** The updates side by side as `uᵀ · [parts 0 | parts 1 | …]`: u [q, N] orthonormal rows, and a part [q, K] of each. */
function shared(call: MergeCall<KnotsSettings>) {
  const { updates } = call;
  const { left, N, K, R } = stackedRows(
    updates,
    updates.map(({ scaling }) => scaling),
  );
  const { basis, q, coefficients } = rowBasis(left, R, N);
  // Of each adapter: the rows of its A in a basis of their own, turned by its part of B.
  const bases: Float64Array[] = [];
  const sizes: number[] = [];
  const columns: Float64Array[] = [];
  let from = 0;
  for (const { loraA, r } of updates) {
    const own = rowBasis(Float64Array.from(loraA), r, K);
    const turn = transposed(coefficients.subarray(from * q, (from + r) * q), r, q);
    const mixed = transposed(own.coefficients, r, own.q);
    columns.push(rowDots(turn, q, mixed, own.q, r));
    bases.push(own.basis);
    sizes.push(own.q);
    from += r;
  }
  const width = sizes.reduce((sum, size) => sum + size, 0);
  const core = new Float64Array(q * width);
  let at = 0;
  columns.forEach((part, t) => {
    const size = sizes[t] as number;
    for (let i = 0; i < q; i++) {
      core.set(part.subarray(i * size, (i + 1) * size), i * width + at);
    }
    at += size;
  });
  const all = smallSvd(core, q, width);
  const count = all.s.filter((value) => value > kSmallest).length;
  const u = rowDots(all.u.subarray(0, count * q), count, transposed(basis, q, N), N, q);
  at = 0;
  const parts = bases.map((own, t) => {
    const size = sizes[t] as number;
    const scaled = new Float64Array(count * size);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < size; j++) {
        scaled[i * size + j] = (all.s[i] as number) * (all.v[i * width + at + j] as number);
      }
    }
    at += size;
    return Float32Array.from(rowDots(scaled, count, transposed(own, size, K), K, size));
  });
  return { u, parts, count, N, K };
}

/** TIES as the authors' program has it: where the sum is 0, the sign of most entries decides. */
export function mergedParts(
  parts: readonly Float32Array[],
  { weights, settings }: Pick<MergeCall<KnotsSettings>, 'weights' | 'settings'>,
): Float64Array {
  const kept = parts.map((part) => part.map(keepFromBound(part, settings.density)));
  const sums = new Float64Array(kept[0]?.length ?? 0);
  for (const part of kept) {
    for (let i = 0; i < sums.length; i++) sums[i] = (sums[i] as number) + (part[i] as number);
  }
  const most = sums.reduce((vote, sum) => vote + Math.sign(sum), 0);
  const values = new Float64Array(kept.length);
  return sums.map((sum, i) => {
    for (let t = 0; t < kept.length; t++) values[t] = (kept[t] as Float32Array)[i] as number;
    return settings.scale * meanOfSign(values, weights, (sum || most) > 0);
  });
}

/**
 * KnOTS: the SVD of all updates side by side, `[ΔW_1 | ΔW_2 | …] = U S [V_1 | V_2 | …]ᵀ`, and TIES of the `S V_iᵀ`. It comes
 * from the factors, and no matrix [N, K] is formed. The result times `scale` has the rank Σr, or `rank` if that is not 0.
 */
export const knots = defineMerge<KnotsSettings>({
  merge: 'knots',
  reference: 'Stoica et al., Model merging with SVD to tie the Knots, 2024, arXiv:2410.19735',
  defaults: { density: 0.2, scale: 1, rank: 0 },
  check: (settings) => checkDensity(settings) ?? checkRank(settings),
  layer: (call): LoraUpdate => {
    const { u, parts, count, N, K } = shared(call);
    const right = mergedParts(parts, call);
    const whole = fromTriplets(u, right, Math.max(count, 1), N, K);
    const { rank } = call.settings;
    return rank === 0 || rank >= whole.r ? whole : truncatedSum([whole], [1], rank);
  },
});
