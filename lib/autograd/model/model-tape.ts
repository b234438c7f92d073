import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import type { ExpertRoute } from '../../ops/experts/expert-route.js';
import type { SelectExpertsOptions } from '../../ops/experts/select-experts.js';
import type { GateKind } from '../../ops/gated-activation.js';
import type { AttentionOptions, AttentionShape } from '../../ops/model/attention.js';
import { type EmbeddingOptions, embedding } from '../../ops/model/embedding.js';
import type { Indices } from '../../ops/model/indices.js';
import type { LinearCrossEntropyOptions } from '../../ops/model/linear-cross-entropy.js';
import { checkStep, type Value } from '../gradient-tape.js';
import { Tape } from '../tape.js';
import { type AttentionValues, recordAttention } from './attention.js';
import { type ExpertsStep, recordCombine, recordExperts, recordSelection } from './experts.js';
import { recordGate } from './gated.js';
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

  /** `f(gate) ⊙ up` of a gated feed-forward layer, {@link gatedActivation}, in the dtype of the gate. */
  gatedActivation(gate: Value, up: Value, kind: GateKind): Value {
    return recordGate(this, gate, up, kind);
  }

  /**
   * The experts of each row and their gates, {@link selectExperts}, with the slots that {@link routeRows} makes of them.
   * The choice has no gradient, the gates have.
   * @param logits [..., E]
   */
  selectExperts(
    logits: Value,
    options: SelectExpertsOptions,
  ): { route: ExpertRoute; gates: Value } {
    return recordSelection(this, logits, options);
  }

  /**
   * The products of all experts over a frozen base weight, {@link expertsMatmul}, with gradients for x and the factors.
   * @param w [E · N, K]
   */
  expertsMatmul(x: Value, w: BaseWeight, route: ExpertRoute, options: ExpertsStep = {}): Value {
    return recordExperts(this, x, w, route, options);
  }

  /** `Σⱼ gates · y` of each row's slots, {@link combineRows}, with gradients for y and the gates. */
  combineRows(y: Value, gates: Value, route: ExpertRoute): Value {
    return recordCombine(this, y, gates, route);
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
   * Steps that keep x only, and run again in the backward pass with the same random numbers (Chen et al., Training Deep
   * Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174): the same bits as `body(this, x)`.
   * @param body a function of x and of the variables that it makes; it runs twice
   * @example
   * x = t.recompute(x, (t, x) => block(t, x));
   */
  recompute(x: Value, body: (tape: ModelTape, x: Value) => Value): Value {
    checkStep('recompute', this, { x });
    if (!this.recording) return body(this, x);
    const { options, dropouts } = this.fork();
    const run = (input: Tensor): { tape: ModelTape; from: Value; y: Value } => {
      const tape = new ModelTape(options);
      tape.resume(dropouts);
      const from = x.differentiable ? tape.variable(input) : tape.constant(input);
      // What the tape keeps outlives the scope with it.
      return scope(() => ({ tape, from, y: body(tape, from) }));
    };
    const first = run(x.tensor);
    this.resume(first.tape.fork().dropouts);
    const tensors = [...first.tape.variables.keys()].filter((tensor) => tensor !== x.tensor);
    const variables = tensors.map((tensor) => this.variable(tensor));
    const { tensor } = first.y;
    const y = first.tape.holds(tensor) ? tensor.reshape(tensor.shape) : tensor;
    first.tape.dispose();
    return this.record(y, [x, ...variables], [x.tensor], (dy, pass) => {
      const again = run(x.tensor);
      const wanted = [
        ...(pass.wants(x) ? [{ input: x, values: [again.from] }] : []),
        ...variables.flatMap((input) => {
          const values = again.tape.variables.get(input.tensor) ?? [];
          return pass.wants(input) ? [{ input, values }] : [];
        }),
      ];
      const flat = wanted.flatMap(({ input, values }) => values.map((value) => ({ input, value })));
      const found = again.tape.gradients(
        'recompute',
        again.y,
        dy,
        flat.map(({ value }) => value),
        { release: true },
      );
      for (const [i, gradient] of found.entries()) {
        if (gradient !== undefined) pass.give((flat[i] as { input: Value }).input, gradient);
      }
    });
  }

  /**
   * Causal attention of grouped heads, as {@link attention}: o [B, T, heads · d]. The rotation and the documents must
   * live as long as the tape. A cache is for a tape that does not record.
   * @param values `{ q, k, v }`, or `{ qkv }`
   */
  attention(
    values: AttentionValues,
    options: AttentionShape & Pick<AttentionOptions, 'cache' | 'sinks'>,
  ): Value {
    return recordAttention(this, values, options);
  }
}
