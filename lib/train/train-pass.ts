/** A forward pass of a training step. */

import type { Value } from '../autograd/gradient-tape.js';
import type { ModelTape } from '../autograd/model/model-tape.js';
import type { Tensor } from '../core/tensor.js';

/** What a pass knows beside its tape. In a captured step these are the numbers of the capture. */
export interface PassPlace {
  /** Number of finished steps. */
  readonly step: number;
  /** Index of the pass in its step. */
  readonly pass: number;
  /** Another in each pass of each step; the tape's dropout draws from it. */
  readonly seed: number;
}

/**
 * What a pass gives: a loss [1], and gradients by tensor that do not follow from it, like those of a penalty. The step
 * frees these gradients.
 */
export interface PassResult {
  readonly loss: Value;
  readonly added?: Iterable<readonly [Tensor, Tensor]>;
  /**
   * Of a private step, which needs it: the number of examples, each a block of as many consecutive rows. The loss is the sum
   * of theirs, and nothing is added.
   */
  readonly examples?: number;
}

/** A forward pass on a tape. */
export type TrainPass = (tape: ModelTape, place: PassPlace) => Value | PassResult;
