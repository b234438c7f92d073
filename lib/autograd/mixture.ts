/** A sparse mixture of low-rank experts: a batch of many adapters, as a step of the tape. */

import { lastDim } from '../core/check-tensor.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { showShape } from '../core/validate.js';
import type { BaseWeight } from '../ops/base-weight.js';
import type { GroupedGradient } from '../ops/grouped/grouped-backward.js';
import { type GroupedForwardOptions, GroupedLora } from '../ops/grouped/grouped-lora.js';
import { LoraAdapter } from '../ops/lora/lora-adapter.js';
import type { GradientTape, Value } from './gradient-tape.js';

/** One expert of a mixture. */
export interface Expert {
  /** [r, K] */
  readonly a: Value;
  /** [N, r] */
  readonly b: Value;
  readonly scaling: number;
}

/** Operands of {@link mixture}. */
export interface MixtureOperands {
  readonly x: Value;
  readonly w: BaseWeight;
  readonly bias: Value | undefined;
  readonly experts: readonly Expert[];
  readonly gates: Value;
  readonly kept: Tensor;
  readonly dropout: number;
}

/** The names of each row's experts: one slot for each, empty if the mask leaves the expert out. */
function rowsOf(kept: Tensor, experts: number): (string | null)[][] {
  const mask = kept.readSync();
  return Array.from({ length: mask.length / experts }, (_, m) =>
    Array.from({ length: experts }, (_, e) => (mask[m * experts + e] === 0 ? null : String(e))),
  );
}

/** Implements `Tape.mixture`, which documents it. */
export function mixture(
  t: GradientTape,
  { x, w, bias, experts, gates, kept, dropout }: MixtureOperands,
  options: GroupedForwardOptions,
): Value {
  const E = experts.length;
  const shape = [...x.shape.slice(0, -1), E];
  for (const [name, tensor] of [
    ['gates', gates.tensor],
    ['kept', kept],
  ] as const) {
    if (tensor.shape.length === shape.length && shape.every((dim, i) => dim === tensor.shape[i])) {
      continue;
    }
    fail('ERR_SHAPE', 'mixture', name, `of shape ${showShape(shape)}`, showShape(tensor.shape));
  }
  const { device } = x.tensor;
  const group = new GroupedLora({
    inFeatures: w.shape[1] ?? 0,
    outFeatures: w.shape[0] ?? 0,
    device,
  });
  experts.forEach(({ a, b, scaling }, e) => {
    const [loraA, loraB] = [a.tensor, b.tensor];
    const [trainA, trainB] = [a.differentiable, b.differentiable];
    const loraAlpha = scaling * lastDim(loraB);
    group.add(String(e), new LoraAdapter({ loraA, loraB, loraAlpha, dropout, trainA, trainB }));
  });
  const { y, saved } = group.forward(x.tensor, w, rowsOf(kept, E), {
    ...options,
    rowScale: gates.tensor,
    training: t.recording,
    ...(bias === undefined ? {} : { bias: bias.tensor }),
  });
  const factors = experts.flatMap(({ a, b }) => [a, b]);
  const inputs = [x, gates, ...factors, ...(bias === undefined ? [] : [bias])];
  const keeps = [saved, gates.tensor, ...factors.map(({ tensor }) => tensor)];
  return t.record(y, inputs, keeps, (dy, pass) => {
    const needs: GroupedGradient[] = [];
    if (pass.wants(x)) needs.push('dx');
    if (pass.wants(gates)) needs.push('dRowScale');
    if (bias !== undefined && pass.wants(bias)) needs.push('dBias');
    if (factors.some((factor) => pass.wants(factor))) needs.push('adapters');
    const { dx, dRowScale, dBias, adapters } = group.backward(dy, saved, { needs, keep: true });
    if (dx !== undefined) pass.give(x, dx);
    if (dRowScale !== undefined) pass.give(gates, dRowScale);
    if (dBias !== undefined && bias !== undefined) pass.give(bias, dBias.reshape(bias.shape));
    experts.forEach(({ a, b }, e) => {
      // An expert without rows has a zero gradient, as in the dense mixture.
      const own = adapters.get(String(e));
      for (const [factor, gradient] of [
        [a, own?.dLoraA],
        [b, own?.dLoraB],
      ] as const) {
        if (pass.wants(factor)) {
          pass.give(factor, gradient ?? Tensor.zeros(factor.shape, { device }));
        }
      }
    });
  });
}
