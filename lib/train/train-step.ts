/** A step of training that was queued, and what a captured one reads. */

import type { DeviceSeed } from '../core/device-seed.js';
import type { Tensor } from '../core/tensor.js';
import type { CapturedRate } from '../optim/definition/definition.js';

/** A step that was queued. */
export interface TrainStep {
  /** Number of steps, with this one. */
  readonly step: number;
  readonly lr: number;
  /**
   * [1] f32: the sum of the losses of its passes, before the update. The next replay of a captured step writes over it;
   * `read()` gives the numbers of this step whenever it is called.
   */
  readonly loss: Tensor;
  /** [1] f32: the norm of all gradients before clipping; not finite if the loss or a gradient is not. */
  readonly gradientNorm: Tensor;
  /** Waits for both numbers and frees the tensors. */
  read(): Promise<{ readonly loss: number; readonly gradientNorm: number }>;
}

/** @internal What stands between the passes of a step and its optimiser. */
export interface GradientEdits {
  /** Does the next step train the parameter? It has no gradient otherwise. */
  trains(index: number): boolean;
  /** The gradients that the step takes instead. */
  edit(gradients: readonly (Tensor | undefined)[]): readonly (Tensor | undefined)[];
}

/** Where a captured step reads what differs from step to step. */
export interface StepInputs extends CapturedRate {
  /** One a pass. */
  readonly seeds: readonly DeviceSeed[];
}

/** What a step computes. */
export interface StepNumbers {
  readonly loss: Tensor;
  readonly gradientNorm: Tensor;
}

/** The two numbers of a step. */
export const readBoth = async ({ loss, gradientNorm }: StepNumbers) => {
  const [values, norms] = await Promise.all([loss.read(), gradientNorm.read()]);
  return { loss: values[0] as number, gradientNorm: norms[0] as number };
};

/** Frees the tensors of a step that nobody reads again. */
export function freeStep({ loss, gradientNorm }: StepNumbers): void {
  loss.dispose();
  gradientNorm.dispose();
}
