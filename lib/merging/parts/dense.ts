import type { Device } from '../../core/device.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { singularFactors } from '../../linalg/tensors/triplets.js';
import { matmulInputGrad } from '../../ops/matmul.js';
import type { AnyMerge, LoraUpdate, MergeCall, NextRandom } from '../definition/definition.js';
import { type Clamp, clampFactors } from './clamp.js';
import { mergeThrough, sieveOf } from './entries.js';
import { fromTriplets, rankOf, type Truncation } from './factors.js';

/** Entries of a tile of rows: all adapters' tiles and the merged one are in memory together. */
const kTile = 2 ** 20;

/** Smaller sides up to this have an exact SVD; above it, subspace iteration finds the leading triplets. */
const kExact = 256;

/** Rows of `scaling · loraB · loraA`, as f32 rounds them. */
function rowsOf(update: LoraUpdate, device: Device, from: number, to: number) {
  const { loraA, loraB, r, inFeatures: K, scaling } = update;
  return scope(async () => {
    const b = Tensor.from(loraB.subarray(from * r, to * r), [to - from, r], { device });
    const product = await matmulInputGrad(b, Tensor.from(loraA, [r, K], { device })).read();
    for (let i = 0; i < product.length; i++) product[i] = (product[i] as number) * scaling;
    return product;
  });
}

/**
 * Merges updates entry by entry, and keeps the leading triplets. One adapter's update is in memory whole while its sieve
 * looks at it; the merge goes by tiles of rows.
 */
export async function mergeDense(
  merge: AnyMerge,
  { updates, weights, settings }: MergeCall<object>,
  randoms: readonly NextRandom[],
  device: Device,
): Promise<LoraUpdate> {
  const [{ inFeatures: K, outFeatures: N }] = updates as readonly [LoraUpdate];
  const all = weights.map((w, i) => w * (updates[i]?.scaling ?? 1));
  const sieves = [];
  for (const [t, update] of updates.entries()) {
    const whole = await rowsOf(update, device, 0, N);
    sieves.push(sieveOf(merge, whole, settings, randoms[t] as NextRandom));
  }
  const merged = new Float32Array(N * K);
  const step = Math.max(Math.floor(kTile / K), 1);
  for (let from = 0; from < N; from += step) {
    const to = Math.min(from + step, N);
    const tiles = [];
    for (const update of updates) tiles.push(await rowsOf(update, device, from, to));
    mergeThrough(merge, tiles, sieves, all, settings, merged.subarray(from * K, to * K));
  }
  const { rank = 0, clamp = 0 } = settings as Partial<Truncation & Clamp>;
  const r = rankOf(updates, rank);
  return scope(() => {
    const w = Tensor.from(merged, [N, K], { device });
    const seed = Math.min(N, K) <= kExact ? undefined : 0;
    const { u, s, v } = singularFactors(w, r, seed);
    const left = new Float32Array(r * N);
    for (let i = 0; i < r; i++) {
      for (let n = 0; n < N; n++) left[i * N + n] = (u[n * r + i] as number) * (s[i] as number);
    }
    return clampFactors(fromTriplets(left, v, r, N, K), clamp);
  });
}
