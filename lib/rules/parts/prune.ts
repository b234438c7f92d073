/**
 * A quantile of values with linear interpolation between the two nearest, as `torch.quantile` has it.
 * @param share in [0, 1]
 */
export function quantile(values: ArrayLike<number>, share: number): number {
  const sorted = Float64Array.from(values).sort();
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const [a, b] = [sorted[low] as number, sorted[Math.min(low + 1, sorted.length - 1)] as number];
  return a + (b - a) * (at - low);
}

/** The values, with 0 in place of those whose size is not above the quantile `share` of the sizes. */
export function pruneSmallest(values: Float32Array, share: number): Float32Array {
  const limit = quantile(values.map(Math.abs), share);
  return values.map((value) => (Math.abs(value) > limit ? value : 0));
}
