import type { BaseWeight } from '../../ops/base-weight.js';
import type { AttentionShape } from '../../ops/model/attention.js';
import { type EmbeddingOptions, embedding } from '../../ops/model/embedding.js';
import type { Indices } from '../../ops/model/indices.js';
import type { LinearCrossEntropyOptions } from '../../ops/model/linear-cross-entropy.js';
import type { Value } from '../gradient-tape.js';
import { Tape } from '../tape.js';
import { type AttentionValues, recordAttention } from './attention.js';
import { type GateFunction, recordGate } from './gated.js';
import { type LossStep, recordLoss } from './loss.js';
import { type RmsNormStep, recordRmsNorm } from './rms-norm.js';

/**
 * A {@link Tape} with the steps of a decoder around its linear layers. Adapters record their
 * forward formulas on it as on any tape.
 * @example
 * const t = new ModelTape();
 * const { y, sum } = t.rmsNorm(x, g, { residual: attentionOutput, eps: 1e-5 });
 */
export class ModelTape extends Tape {
  /**
   * `y = rmsNorm(x + residual, g)` and the sum, which is x itself without a residual. The gradient
   * that later steps give the sum is added in the norm's own pass.
   * @param x [..., D]
   * @param g [D]
   */
  rmsNorm(x: Value, g: Value, options: RmsNormStep = {}): { y: Value; sum: Value } {
    return recordRmsNorm(this, x, g, options);
  }

  /** `f(gate) ⊙ up` of a gated feed-forward layer, in the dtype of the gate. */
  gatedActivation(gate: Value, up: Value, kind: GateFunction): Value {
    return recordGate(this, gate, up, kind);
  }

  /** Rows of a frozen table, {@link embedding}: no gradient goes further. */
  embedding(ids: Indices, table: BaseWeight, options?: EmbeddingOptions): Value {
    return this.own(embedding(ids, table, options));
  }

  /**
   * `scale · Σ weights ⊙ losses` behind a frozen head, {@link linearCrossEntropy}.
   * @param x features [..., K]
   */
  linearCrossEntropy(
    x: Value,
    head: BaseWeight,
    targets: Indices,
    options: Omit<LinearCrossEntropyOptions, 'gradient'> = {},
  ): LossStep {
    return recordLoss(this, x, head, targets, options);
  }

  /**
   * Causal attention of grouped heads, as {@link attention} without a cache: o [B, T, heads · d].
   * The rotation and the documents must live as long as the tape.
   * @param values `{ q, k, v }`, or `{ qkv }`
   */
  attention(values: AttentionValues, options: AttentionShape): Value {
    return recordAttention(this, values, options);
  }
}
