/**
 * loraB of a grouped convolution. PEFT makes loraB itself a grouped convolution, [N, r / groups]: the blocks of a
 * block-diagonal matrix [N, r]. loraA sees all channels.
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

/** Settings of a method that also supports grouped convolutions. */
export interface GroupsConfig extends KernelConfig {
  readonly r: number;
  readonly groups: number;
}

/** Checks the groups of a layer, in the form of a method's check. */
export function checkGroups({ N, K, config }: AdapterSize<GroupsConfig>) {
  const { r, kernel, groups } = config;
  const channels = K / tapsOf(config);
  if (kernel.length === 0 && groups !== 1) {
    return ['groups', '1 for a layer without a kernel', String(groups)] as const;
  }
  const whole = Number.isInteger(groups) && groups > 0;
  if (whole && [r, N, channels].every((size) => size % groups === 0)) return undefined;
  const expected = `a divisor of r (${r}), of N (${N}) and of the channels (${channels})`;
  return ['groups', expected, String(groups)] as const;
}

/** The number of groups of a stored layer: the width of loraB is the number of ranks per group. */
export function readGroups(
  r: number,
  kernel: readonly number[] | undefined,
  loraB: readonly number[] | undefined,
): number {
  const [, each = 0] = loraB ?? [];
  const several = kernel !== undefined && kernel.length > 0 && each > 0;
  return several && r % each === 0 ? r / each : 1;
}

/** Maps the flat trained loraB to the flat full matrix; undefined if they are the same. */
export function wholeMap(
  { N, config: { r, groups } }: AdapterSize<GroupsConfig>,
  device: Device,
): FeatureMap | undefined {
  return groups > 1 ? blockDiagonalMap(N, r, groups, device) : undefined;
}

/** The full loraB [N, r] as a step on the tape. */
export function wholeValue(t: Tape, loraB: Value, map: FeatureMap | undefined, r: number): Value {
  if (map === undefined) return loraB;
  const [N = 0] = loraB.shape;
  return t.reshape(t.features(t.reshape(loraB, [1, loraB.tensor.size]), map), [N, r]);
}

/** The full loraB [N, r] */
export function wholeOf(loraB: Tensor, size: AdapterSize<GroupsConfig>): Tensor {
  return scope(() => {
    const map = wholeMap(size, loraB.device);
    if (map === undefined) return loraB;
    return mapFeatures(loraB.reshape([1, loraB.size]), map).reshape([size.N, size.config.r]);
  });
}
