import { requantized, requireFinite } from '../checkpoint/quantize/requantize.js';
import { QuantizedWeight } from './quantized-weight.js';

/**
 * A planar weight on the same device with other values in its format. The rounding runs on the host.
 * @param values [N, K]
 * @throws ERR_NON_FINITE, ERR_OOM
 */
export function requantizedWeight(
  op: string,
  like: QuantizedWeight,
  values: Float32Array,
): QuantizedWeight {
  requireFinite(op, 'w', values);
  const { device, sourceDType } = like;
  const planes = requantized(QuantizedWeight.planesOf(like, op), values);
  return QuantizedWeight.fromPlanes(planes, { device, sourceDType });
}
