/** The leading part of a row-major tensor: the first `shape[d]` entries of each dimension. */
export function leadingPart(
  values: Float32Array,
  whole: readonly number[],
  shape: readonly number[],
): Float32Array {
  const out = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
  for (let i = 0; i < out.length; i++) {
    let rest = i;
    let at = 0;
    let stride = 1;
    for (let d = shape.length - 1; d >= 0; d--) {
      const dim = shape[d] as number;
      at += (rest % dim) * stride;
      rest = Math.floor(rest / dim);
      stride *= whole[d] as number;
    }
    out[i] = values[at] as number;
  }
  return out;
}
