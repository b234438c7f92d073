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

/** 1 where a value is larger in size than the quantile `share` of the sizes. */
export function largest(values: Float32Array, share: number): Uint8Array {
  const limit = quantile(values.map(Math.abs), share);
  return Uint8Array.from(values, (value) => (Math.abs(value) > limit ? 1 : 0));
}
