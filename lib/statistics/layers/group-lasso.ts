/** Penalties over groups of trained tensors, for training loops and rules. */

import { checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { checkFinite } from '../../core/validate.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { groupNorm, shrinkGroup } from '../../optim/parts/group-shrink.js';

function checkGroups(op: string, groups: unknown): readonly (readonly Tensor[])[] {
  if (!Array.isArray(groups))
    throw wrongType(op, 'groups', 'an array of arrays of tensors', groups);
  for (const [i, group] of groups.entries()) {
    if (!Array.isArray(group)) throw wrongType(op, `groups[${i}]`, 'an array of tensors', group);
    for (const [j, tensor] of group.entries()) checkTensor(op, `groups[${i}][${j}]`, tensor);
  }
  return groups;
}

/** @throws ERR_TYPE · ERR_VALUE */
function atLeastZero(op: string, name: string, value: unknown): number {
  const number = checkFinite(op, name, value);
  if (number < 0) fail('ERR_VALUE', op, name, 'at least 0', String(number));
  return number;
}

/** What {@link groupLasso} gives. */
export interface GroupLasso {
  /** strength · Σ of the norms */
  readonly loss: number;
  /** The norm of each group. */
  readonly norms: readonly number[];
  /** By tensor, as a pass of a {@link Trainer} can add them; those of a group of zeros are zero. The caller's. */
  readonly gradients: ReadonlyMap<Tensor, Tensor>;
}

/**
 * The group lasso strength · Σ ‖group‖ (Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables,
 * 2006) and its gradients. A gradient step alone makes no group exactly zero: {@link shrinkGroups} does.
 * @param groups tensors of each group; a tensor is in one group
 * @throws ERR_TYPE · ERR_VALUE · ERR_DISPOSED · ERR_OOM
 * @example
 * const { gradients } = groupLasso(layers.map(({ parameters: { loraA, loraB } }) => [loraA, loraB]), 0.1);
 * return { loss, added: gradients };
 */
export function groupLasso(groups: readonly (readonly Tensor[])[], strength: number): GroupLasso {
  const op = 'groupLasso';
  const given = checkGroups(op, groups);
  const weight = atLeastZero(op, 'strength', strength);
  const gradients = new Map<Tensor, Tensor>();
  const norms = given.map((group) => {
    const norm = groupNorm(group.map((tensor) => tensor.readSync()));
    for (const tensor of group) {
      if (gradients.has(tensor)) fail('ERR_VALUE', op, 'groups', 'without a tensor twice', 'one');
      const alpha = norm > 0 ? weight / norm : 0;
      gradients.set(tensor, multiplyAdd({ a: tensor, alpha, dtype: 'f32' }));
    }
    return norm;
  });
  return { loss: weight * norms.reduce((a, b) => a + b, 0), norms, gradients };
}

/**
 * The proximal step of the group lasso: each group ← max(0, 1 − threshold / ‖group‖) · group. A group below the threshold
 * becomes exactly zero. The optimiser `gs-lora` takes it after each step, with lr · strength as the threshold.
 * @returns the number of groups that are zero now
 * @throws ERR_TYPE · ERR_VALUE · ERR_DISPOSED · ERR_OOM
 * @example
 * const gone = shrinkGroups([[loraA, loraB]], lr * strength);
 */
export function shrinkGroups(groups: readonly (readonly Tensor[])[], threshold: number): number {
  const op = 'shrinkGroups';
  const given = checkGroups(op, groups);
  const taken = atLeastZero(op, 'threshold', threshold);
  const all = given.map((group) => group.map((tensor) => tensor.readSync()));
  let gone = 0;
  for (const [i, values] of all.entries()) {
    shrinkGroup(values, taken);
    if (groupNorm(values) === 0) gone++;
    for (const [j, own] of values.entries()) (given[i] as readonly Tensor[])[j]?.write(own);
  }
  return gone;
}
