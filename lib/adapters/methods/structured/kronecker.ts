import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import type { Device } from '../../../core/device.js';
import type { BaseWeight } from '../../../ops/base-weight.js';
import { FeatureMap } from '../../../ops/feature-map.js';

/** `scaling · (left ⊗ right)` with left [a, c] and right [b, d]: N = a·b, K = c·d. */
export interface KroneckerSizes {
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly d: number;
}

/** Transposes flattened matrices [c, b] and [b, a]. */
export interface KroneckerMaps {
  readonly middle: FeatureMap;
  readonly last: FeatureMap;
}

export function kroneckerMaps({ a, b, c }: KroneckerSizes, device: Device): KroneckerMaps {
  return {
    middle: FeatureMap.transpose(c, b, { device }),
    last: FeatureMap.transpose(b, a, { device }),
  };
}

/**
 * `x·wᵀ + bias + scaling · x·(left ⊗ right)ᵀ` without forming the product: with x as a matrix X [c,
 * d], it computes `left · X · rightᵀ` [a, b].
 */
export function kroneckerLinear(
  t: Tape,
  call: { x: Value; w: BaseWeight; bias: Value | undefined },
  [left, right]: readonly [Value, Value],
  maps: KroneckerMaps,
  scaling: number,
): Value {
  const { x, w, bias } = call;
  const [a = 0, c = 0] = left.shape;
  const [b = 0, d = 0] = right.shape;
  const lead = x.shape.slice(0, -1);
  const inner = t.shrink(t.reshape(x, [...lead, c, d]), right, { scaling });
  const across = t.features(t.reshape(inner, [...lead, c * b]), maps.middle);
  const outer = t.matmul(t.reshape(across, [...lead, b, c]), left);
  const update = t.features(t.reshape(outer, [...lead, b * a]), maps.last);
  return t.add(t.linear(x, w, bias), update);
}

/**
 * Two factors of a width, the smaller one first: `factor` and the quotient if it is a divisor,
 * otherwise the pair of divisors nearest the root whose smaller one is at most `factor` (−1: any).
 */
export function factorsOf(width: number, factor: number): readonly [number, number] {
  if (factor > 0 && width % factor === 0) return [factor, width / factor];
  const most = factor === -1 ? width : factor;
  let best = 1;
  for (let m = 2; m * m <= width && m <= most; m++) if (width % m === 0) best = m;
  return [best, width / best];
}
