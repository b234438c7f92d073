import { lastDim } from '../core/check-tensor.js';
import type { Tensor } from '../core/tensor.js';
import { FeatureMap, mapFeatures } from '../ops/feature-map.js';

/** Columns begin to end of a [..., N], f32. */
export function takeColumns(a: Tensor, begin: number, end: number): Tensor {
  const map = FeatureMap.slice(lastDim(a), begin, end, { device: a.device });
  return mapFeatures(a, map, { dtype: 'f32' });
}

/** y [..., N] f32 with `part` added in its columns from `begin` on. */
export function addColumns(y: Tensor, part: Tensor, begin: number): Tensor {
  const width = lastDim(part);
  const index = new Int32Array(lastDim(y)).fill(-1);
  for (let j = 0; j < width; j++) index[begin + j] = j;
  const map = FeatureMap.gather(index, width, { device: y.device });
  return mapFeatures(part, map, { c: y, dtype: 'f32' });
}
