import { wrongType } from '../../core/errors.js';
import type { AnyMerge, NextRandom } from '../definition/definition.js';

/** What becomes of the entries of one adapter's tensor. */
export type Sieve = (value: number) => number;

/** The sieve of a tensor, before its entries are merged. @throws ERR_TYPE */
export function sieveOf(
  merge: AnyMerge,
  values: Float32Array,
  settings: object,
  random: NextRandom,
): Sieve {
  if (merge.sift === undefined) return (value) => value;
  const sieve: unknown = merge.sift(values, settings, random);
  if (typeof sieve === 'function') return sieve as Sieve;
  throw wrongType('combineAdapters', `what sift of ${merge.merge} returns`, 'a function', sieve);
}

/** Merges the entries of tensors of one size in their order, each through the sieve of its tensor. */
export function mergeThrough(
  merge: AnyMerge,
  tensors: readonly Float32Array[],
  sieves: readonly Sieve[],
  weights: readonly number[],
  settings: object,
  out: Float32Array,
): void {
  const entry = merge.entry as NonNullable<AnyMerge['entry']>;
  const values = new Float64Array(tensors.length);
  for (let i = 0; i < out.length; i++) {
    for (let t = 0; t < tensors.length; t++) {
      values[t] = (sieves[t] as Sieve)((tensors[t] as Float32Array)[i] as number);
    }
    out[i] = entry(values, weights, settings);
  }
}

/** The merge of whole tensors, entry by entry. */
export function mergeEntries(
  merge: AnyMerge,
  tensors: readonly Float32Array[],
  weights: readonly number[],
  settings: object,
  randoms: readonly NextRandom[],
): Float32Array {
  const sieves = tensors.map((values, t) =>
    sieveOf(merge, values, settings, randoms[t] as NextRandom),
  );
  const out = new Float32Array(tensors[0]?.length ?? 0);
  mergeThrough(merge, tensors, sieves, weights, settings, out);
  return out;
}
