/** Direct preference optimisation: a model learns which of two answers is better, beside the model that it began as. */

import type { Value } from '../autograd/gradient-tape.js';
import { ModelTape } from '../autograd/model/model-tape.js';
import type { DType } from '../core/dtype.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { Decoder, DecoderCall } from '../model/decoder.js';
import { tokensOf } from '../model/decoder-tokens.js';
import { multiplyAdd } from '../ops/elementwise.js';
import type { Batch, BatchPair, Sequences } from '../text/sequences.js';

/** Losses of two answers: −log of their probabilities, in nats. */
export interface AnswerLosses {
  readonly chosen: number;
  readonly rejected: number;
}

/** The loss of a pair of answers. */
export interface PairLoss {
  readonly loss: number;
  /** ∂loss / ∂policy.chosen; that of the rejected answer is its negative. */
  readonly slope: number;
  /** β times the log of how much more the policy prefers the chosen answer than the reference does. */
  readonly margin: number;
}

/**
 * `−log σ(z)` with `z = β · ((log π(c) − log ρ(c)) − (log π(r) − log ρ(r)))` for the chosen answer c, the rejected answer r, the
 * policy π and the reference ρ (Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290, equation 7).
 */
export function pairLoss(policy: AnswerLosses, reference: AnswerLosses, beta: number): PairLoss {
  const margin = beta * (reference.chosen - policy.chosen - (reference.rejected - policy.rejected));
  return {
    loss: Math.log1p(Math.exp(-Math.abs(margin))) + Math.max(-margin, 0),
    slope: beta / (1 + Math.exp(margin)),
    margin,
  };
}

/** Mean over a set of pairs. */
export interface PreferenceScore {
  readonly loss: number;
  /** Share of the pairs whose chosen answer gained on the rejected one. */
  readonly accuracy: number;
}

/**
 * The loss over the rows of packed pairs. The reference is the decoder without adapters, so it costs one forward pass for each
 * row of the data, and no memory but two numbers a pair.
 */
export class PreferenceLoss {
  readonly #reference = new Map<Sequences, Map<number, AnswerLosses>>();

  /** @param beta how far the policy may leave the reference: the larger, the less */
  constructor(
    private readonly decoder: Decoder,
    readonly beta: number,
    private readonly dtype: DType,
  ) {}

  /**
   * The share of one pass in the mean over a step. The head runs once for the losses and once for the gradient, whose
   * factors follow from them.
   * @param indices the rows of the set that the batch has
   * @param pairs number of pairs in the step
   */
  record(
    tape: ModelTape,
    features: Value,
    { set, indices, batch }: PreferenceRows,
    call: DecoderCall,
    pairs: number,
  ): Value {
    const { device } = this.decoder.weights;
    const own = batch.pairs ?? [];
    const known = this.#referenceOf(set, indices);
    const losses = this.#losses(features.tensor, batch, call);
    const weights = new Float32Array(losses.length);
    let total = 0;
    for (const pair of own) {
      const found = pairLoss(
        answersOf(losses, pair),
        known.get(pair.index) as AnswerLosses,
        this.beta,
      );
      total += found.loss / pairs;
      weights.fill(found.slope / pairs, ...pair.chosen);
      weights.fill(-found.slope / pairs, ...pair.rejected);
    }
    const factors = Tensor.from(weights, [weights.length], { device });
    const { loss } = this.decoder.loss(tape, features, batch.targets, {
      ...call,
      weights: factors,
    });
    // The value is that of the pairs, the gradient that of their weighted tokens.
    const value = Tensor.from([total], [1], { device });
    return tape.record(value, [loss], [], (dy, pass) => pass.give(loss, multiplyAdd({ a: dy })));
  }

  /** The mean over pairs of a batch's rows, summed: divide by the pairs. */
  score(
    rows: PreferenceRows,
    call: DecoderCall,
  ): { readonly loss: number; readonly right: number } {
    const { batch } = rows;
    const known = this.#referenceOf(rows.set, rows.indices);
    const losses = this.#forward(batch, rows.set.T, call);
    let [loss, right] = [0, 0];
    for (const pair of batch.pairs ?? []) {
      const found = pairLoss(
        answersOf(losses, pair),
        known.get(pair.index) as AnswerLosses,
        this.beta,
      );
      loss += found.loss;
      if (found.margin > 0) right++;
    }
    return { loss, right };
  }

  /** What the reference gives the pairs of rows. Each row runs alone, so that the bits are the same in any batch. */
  #referenceOf(set: Sequences, indices: ArrayLike<number>): ReadonlyMap<number, AnswerLosses> {
    const known = this.#reference.get(set) ?? new Map<number, AnswerLosses>();
    this.#reference.set(set, known);
    for (const index of Array.from(indices)) {
      const batch = set.batch([index]);
      const missing = (batch.pairs ?? []).filter((pair) => !known.has(pair.index));
      if (missing.length === 0) continue;
      const losses = this.#forward(batch, set.T, { dtype: this.dtype });
      for (const pair of missing) known.set(pair.index, answersOf(losses, pair));
    }
    return known;
  }

  /** The loss of each token, without a gradient. */
  #forward(batch: Batch, T: number, call: DecoderCall): Float32Array {
    return scope(() => {
      const tape = new ModelTape({ recording: false });
      const { device } = this.decoder.weights;
      const tokens = tokensOf(batch, T, device);
      const { features } = this.decoder.forward(tape, tokens, call);
      return this.#losses(features.tensor, batch, call);
    });
  }

  #losses(features: Tensor, { targets }: Pick<Batch, 'targets'>, call: DecoderCall): Float32Array {
    return scope(() => {
      const tape = new ModelTape({ recording: false });
      const { losses } = this.decoder.loss(tape, tape.constant(features), targets, call);
      return losses.readSync();
    });
  }
}

/** Rows of a set, and the batch of them. */
export interface PreferenceRows {
  readonly set: Sequences;
  readonly indices: ArrayLike<number>;
  readonly batch: Batch;
}

function answersOf(losses: Float32Array, pair: BatchPair): AnswerLosses {
  const sum = ([begin, end]: readonly [number, number]): number => {
    let all = 0;
    for (let i = begin; i < end; i++) all += losses[i] as number;
    return all;
  };
  return { chosen: sum(pair.chosen), rejected: sum(pair.rejected) };
}
