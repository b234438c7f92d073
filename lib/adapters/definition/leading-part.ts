/** Indices of the leading part of a row-major tensor: the first `shape[d]` entries of each dimension. */
export function leadingPlaces(whole: readonly number[], shape: readonly number[]): Float64Array {
  const places = new Float64Array(shape.reduce((product, dim) => product * dim, 1));
  for (let i = 0; i < places.length; i++) {
    let rest = i;
    let at = 0;
    let stride = 1;
    for (let d = shape.length - 1; d >= 0; d--) {
      const dim = shape[d] as number;
      at += (rest % dim) * stride;
      rest = Math.floor(rest / dim);
      stride *= whole[d] as number;
    }
    places[i] = at;
  }
  return places;
}

/** The leading part of a row-major tensor. */
export function leadingPart(
  values: Float32Array,
  whole: readonly number[],
  shape: readonly number[],
): Float32Array {
  return Float32Array.from(leadingPlaces(whole, shape), (at) => values[at] as number);
}
