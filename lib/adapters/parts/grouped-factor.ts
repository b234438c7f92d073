/**
 * loraB of a convolution of groups: PEFT makes it a convolution of groups itself, [N, r / groups], the blocks of a
 * block-diagonal matrix [N, r], while loraA sees all channels.
 */

import type { Value } from '../../autograd/gradient-tape.js';
import type { Tape } from '../../autograd/tape.js';
import type { Device } from '../../core/device.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { type FeatureMap, mapFeatures } from '../../ops/feature-map.js';
import { blockDiagonalMap } from '../../ops/grouped-weight.js';
import type { AdapterSize } from '../definition/maker.js';
import { type KernelConfig, tapsOf } from './layer-kind.js';

/** Settings of a method that is on convolutions of groups too. */
export interface GroupsConfig extends KernelConfig {
  readonly r: number;
  readonly groups: number;
}

/** What is wrong with the groups of a layer, as a method's check tells it. */
export function checkGroups({ N, K, config }: AdapterSize<GroupsConfig>) {
  const { r, kernel, groups } = config;
  const channels = K / tapsOf(config);
  if (kernel.length === 0 && groups !== 1) {
    return ['groups', '1 of a layer without a kernel', String(groups)] as const;
  }
  const whole = Number.isInteger(groups) && groups > 0;
  if (whole && [r, N, channels].every((size) => size % groups === 0)) return undefined;
  const expected = `a divisor of r (${r}), of N (${N}) and of the channels (${channels})`;
  return ['groups', expected, String(groups)] as const;
}

/** The groups of a stored layer: what a group has of the r values is loraB's width. */
export function readGroups(
  r: number,
  kernel: readonly number[] | undefined,
  loraB: readonly number[] | undefined,
): number {
  const [, each = 0] = loraB ?? [];
  const several = kernel !== undefined && kernel.length > 0 && each > 0;
  return several && r % each === 0 ? r / each : 1;
}

/** Of loraB as it is trained, flat, to all of it, flat; none where it is all of it. */
export function wholeMap(
  { N, config: { r, groups } }: AdapterSize<GroupsConfig>,
  device: Device,
): FeatureMap | undefined {
  return groups > 1 ? blockDiagonalMap(N, r, groups, device) : undefined;
}

/** loraB [N, r] as a step on the tape. */
export function wholeValue(t: Tape, loraB: Value, map: FeatureMap | undefined, r: number): Value {
  if (map === undefined) return loraB;
  const [N = 0] = loraB.shape;
  return t.reshape(t.features(t.reshape(loraB, [1, loraB.tensor.size]), map), [N, r]);
}

/** loraB [N, r] */
export function wholeOf(loraB: Tensor, size: AdapterSize<GroupsConfig>): Tensor {
  return scope(() => {
    const map = wholeMap(size, loraB.device);
    if (map === undefined) return loraB;
    return mapFeatures(loraB.reshape([1, loraB.size]), map).reshape([size.N, size.config.r]);
  });
}
