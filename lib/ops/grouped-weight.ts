import { checkTensor } from '../core/check-tensor.js';
import type { Device } from '../core/device.js';
import { fail } from '../core/errors.js';
import type { Tensor } from '../core/tensor.js';
import { checkInteger, showShape } from '../core/validate.js';
import { FeatureMap, mapFeatures } from './feature-map.js';

/**
 * Maps blocks stacked vertically, [N, C / groups] flat, to the block-diagonal matrix [N, C] flat.
 * The elements between the blocks are zero, whatever the blocks contain.
 */
export function blockDiagonalMap(N: number, C: number, groups: number, device: Device): FeatureMap {
  const width = C / groups;
  const index = new Int32Array(N * C).fill(-1);
  for (let n = 0; n < N; n++) {
    const left = Math.floor(n / (N / groups)) * width;
    for (let c = 0; c < width; c++) index[n * C + left + c] = n * width + c;
  }
  return FeatureMap.gather(index, N * width, { device });
}

/**
 * The weight of a grouped convolution as one over all channels, zero where an output does not see a
 * channel. With the patches of {@link Im2col} the layer is then an ordinary product. It costs `groups`
 * times as much as the products of the separate groups.
 * @param w [N, C / groups, ...kernel] or [N, C / groups · taps], dense; any dtype
 * @param groups a divisor of N
 * @returns [N, C · taps] with the dtype and values of w
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const w = groupedWeight(stored, 4); // [32, 2, 3, 3] to [32, 72]
 * const { y } = adapter.forward(patches.rows(images), w);
 */
export function groupedWeight(w: Tensor, groups: number): Tensor {
  const op = 'groupedWeight';
  const { shape, device, dtype } = checkTensor(op, 'w', w);
  const G = checkInteger(op, 'groups', groups, 1, 2 ** 20);
  const [N = 0, ...rest] = shape;
  if (rest.length === 0 || w.size === 0) {
    fail('ERR_SHAPE', op, 'w', 'of shape [N, C / groups, ...kernel]', showShape(shape));
  }
  if (N % G !== 0) fail('ERR_VALUE', op, 'groups', `a divisor of N (${N})`, String(G));
  const width = w.size / N;
  if (N * width * G > 2 ** 31 - 1) {
    fail('ERR_VALUE', op, 'groups', 'such that the result has fewer than 2^31 values', String(G));
  }
  using map = blockDiagonalMap(N, width * G, G, device);
  using flat = w.reshape([1, w.size]);
  using full = mapFeatures(flat, map, { dtype });
  return full.reshape([N, width * G]);
}
