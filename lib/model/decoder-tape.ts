import type { Value } from '../autograd/gradient-tape.js';
import type { LossStep } from '../autograd/model/loss.js';
import type { ModelTape } from '../autograd/model/model-tape.js';
import type { Tensor } from '../core/tensor.js';
import type { Indices } from '../ops/model/indices.js';

/** How the loss of logits that exist is computed. */
export interface LogitLossOptions {
  /** Logits become softcap · tanh(logits / softcap). */
  readonly softcap?: number;
  /** Times each token's loss; default 1. */
  readonly scale?: number;
  /** [M] f32: another factor of each. */
  readonly weights?: Tensor;
}

/** A tape that can also compute the loss of logits, which an adapter of the head needs. */
export interface DecoderTape extends ModelTape {
  crossEntropy?(logits: Value, targets: Indices, options: LogitLossOptions): LossStep;
}
