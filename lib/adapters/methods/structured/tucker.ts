/**
 * Factors of a convolution's update with a core over its taps, as in a Tucker product (FedPara's
 * proposition 3, as in LyCORIS and PEFT).
 */

import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import type { Device } from '../../../core/device.js';
import { FeatureMap } from '../../../ops/feature-map.js';

/** Transposes the features of a core and of its product. */
export interface TuckerMaps {
  readonly inner: FeatureMap;
  readonly outer: FeatureMap;
}

export function tuckerMaps(r: number, taps: number, C: number, device: Device): TuckerMaps {
  return {
    inner: FeatureMap.transpose(r, taps, { device }),
    outer: FeatureMap.transpose(taps, C, { device }),
  };
}

/**
 * The right factor of a Tucker product, `(core, b)` [r, C · taps]: row i has `Σⱼ core[i, j, τ] · b[j, c]` at
 * channel c and tap τ.
 */
export function rightFactor(t: Tape, core: Value, b: Value, taps: number, maps: TuckerMaps): Value {
  const [r = 0, C = 0] = b.shape;
  const byTap = t.features(t.reshape(core, [r, r * taps]), maps.inner);
  const each = t.product(t.reshape(byTap, [r * taps, r]), b);
  return t.features(t.reshape(each, [r, taps * C]), maps.outer);
}
