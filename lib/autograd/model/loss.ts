import type { Tensor } from '../../core/tensor.js';
import { readOptions } from '../../core/validate.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd, sumProduct } from '../../ops/elementwise.js';
import type { Indices } from '../../ops/model/indices.js';
import {
  type LinearCrossEntropyOptions,
  linearCrossEntropy,
} from '../../ops/model/linear-cross-entropy.js';
import { checkStep, type GradientTape, type Value } from '../gradient-tape.js';

/** The loss of a step, and that of each token. */
export interface LossStep {
  /** `scale · Σ weights ⊙ losses`, [1]. */
  loss: Value;
  /** [M] f32. */
  losses: Tensor;
}

/** A scalar loss behind a head. The gradient of x is made with it, and scaled in the backward pass. */
export function recordLoss(
  t: GradientTape,
  x: Value,
  head: BaseWeight,
  targets: Indices,
  options: Omit<LinearCrossEntropyOptions, 'gradient'>,
): LossStep {
  checkStep('linearCrossEntropy', t, { x });
  const given = readOptions('ModelTape.linearCrossEntropy', options, {
    weights: true,
    scale: true,
    softcap: true,
  });
  const { weights, scale = 1 } = given;
  const gradient = t.recording && x.differentiable;
  const { losses, dx } = linearCrossEntropy(x.tensor, head, targets, { ...given, gradient });
  const M = losses.size;
  const sum = sumProduct(losses.reshape([1, M]), weights?.reshape([1, M]), { axis: 1 });
  const total = scale === 1 ? sum : multiplyAdd({ a: sum, alpha: scale });
  const keeps = dx === undefined ? [] : [dx];
  const loss = t.record(total.reshape([1]), [x], keeps, (dy, pass) => {
    if (dx !== undefined) pass.give(x, multiplyAdd({ a: dx, b: dy.reshape([1]) }));
  });
  return { loss, losses };
}
