import type { DType } from '../core/dtype.js';
import type { AnyOptimizer } from '../optim/definition/definition.js';
import type { ChosenRule } from '../rules/definition/definition.js';
import type { PrivateSteps } from './private-step.js';

/** Settings of a training run. */
export interface TrainOptions {
  readonly steps: number;
  /** Sequences in one forward and backward pass. */
  readonly batch: number;
  /** Passes whose gradients are averaged before an update. */
  readonly accumulate: number;
  /** Peak learning rate. */
  readonly lr: number;
  readonly warmup: number;
  readonly weightDecay: number;
  /** Maximum global norm of the gradient; with `privacy`, of each sequence's. */
  readonly clip: number;
  readonly seed: number;
  /**
   * Default none. A private step takes each training sequence with the probability batch · accumulate / sequences, in as many
   * passes of up to `batch` as that needs.
   */
  readonly privacy?: Pick<PrivateSteps, 'noise'>;
  /** Default `adamw`. */
  readonly optimizer?: AnyOptimizer;
  /** Settings of the optimiser that differ from its defaults. */
  readonly optimizerSettings?: Readonly<Record<string, unknown>>;
  /** Rules of training; their hooks are called in this order. */
  readonly rules?: readonly ChosenRule[];
  /** Of the activations. */
  readonly dtype: DType;
  /** Do blocks run again in the backward pass? */
  readonly recompute: boolean;
  /**
   * Are steps on a CUDA device captured as a graph and replayed? Default true. The bits are the same; what cannot be
   * captured runs without (`notCaptured` of the trainer).
   */
  readonly capture?: boolean;
  /** β of the loss over pairs of answers, which the data must have; absent for the loss of the next token. */
  readonly dpoBeta?: number;
}

/** The result of one step. */
export interface StepResult {
  /** Number of finished steps, including this one. */
  readonly step: number;
  /**
   * Mean training loss in nats per token before the update, without the method's penalty; 0 for a private step that took no
   * sequence.
   */
  readonly loss: number;
  readonly gradientNorm: number;
  readonly lr: number;
  readonly tokens: number;
}
