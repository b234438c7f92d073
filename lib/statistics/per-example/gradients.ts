/** Norms of the gradients of single examples, and their clipped sum, from one forward and one backward pass. */

import type { Value } from '../../autograd/gradient-tape.js';
import type { ModelTape } from '../../autograd/model/model-tape.js';
import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, markClass, notConstructed, wrongType } from '../../core/errors.js';
import { full } from '../../core/full.js';
import { scope, track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { checkFinite, checkInteger, readOptions } from '../../core/validate.js';
import { mapTensor, multiplyAdd, sumProduct } from '../../ops/elementwise.js';
import { MOST_EXPERTS } from '../../ops/experts/expert-route.js';
import { loraExpandBackward } from '../../ops/lora/lora-parts.js';
import { matmul } from '../../ops/matmul.js';
import { weightGrad } from '../../ops/weight-grad.js';
import { examplesOf, routeOf } from './products.js';
import { PerExampleTape } from './tape.js';

const kOp = 'perExampleGradients';

/** What a pass of {@link perExampleGradients} gives. */
export interface ExamplesPass {
  /** [1]: the sum of the losses of the examples. */
  readonly loss: Value;
  /** Each example is a block of as many consecutive rows; up to 1,024. */
  readonly examples: number;
}

/** How {@link perExampleGradients} works. */
export interface PerExampleOptions {
  /** Tensors whose gradients count; default all variables of the pass. */
  readonly trained?: readonly Tensor[];
}

/** Gradients of single examples, as what their norms and weighted sums need. {@link perExampleGradients} makes it. */
export class PerExampleGradients implements Disposable {
  /** [1] f32: the sum of the losses. */
  readonly loss: Tensor;
  /** [examples] f32: the norm of each example's gradient, over all factors. */
  readonly norms: Tensor;
  readonly examples: number;
  readonly #tape: PerExampleTape;

  /** @internal */
  constructor(tape: PerExampleTape, loss: Tensor, examples: number) {
    if (!(tape instanceof PerExampleTape)) throw notConstructed('PerExampleGradients', kOp);
    this.#tape = tape;
    this.loss = loss;
    this.examples = examples;
    this.norms = scope(() => {
      const route = routeOf(tape.rows, examples);
      const squares = tape.rows.map((rows) => {
        const each = examplesOf(rows, route);
        return sumProduct(each, each, { axis: 1 });
      });
      const none = Tensor.zeros([examples], { device: loss.device });
      return mapTensor(
        squares.reduce((a, b) => multiplyAdd({ a, c: b }), none),
        'sqrt',
      );
    });
    track(this);
  }

  /** The trained tensors that have a gradient. */
  get factors(): readonly Tensor[] {
    return this.#tape.rows.map(({ factor }) => factor);
  }

  /**
   * The sum of the examples' gradients, each scaled to a norm of at most `bound`: by min(1, bound / (norm + 1e-6)).
   * @returns f32, in the shape of each factor
   * @throws ERR_TYPE · ERR_VALUE · ERR_DISPOSED · ERR_OOM
   */
  clipped(bound: number): ReadonlyMap<Tensor, Tensor> {
    const op = 'PerExampleGradients.clipped';
    const most = checkFinite(op, 'bound', bound);
    if (most <= 0) fail('ERR_VALUE', op, 'bound', 'above 0', String(most));
    this.#checkLive(op);
    return scope(() => this.#sum(clipFactors(this.norms, most)));
  }

  /**
   * The sum of the examples' gradients, each times its weight.
   * @param weights [examples] f32
   * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
   */
  weighted(weights: Tensor): ReadonlyMap<Tensor, Tensor> {
    const op = 'PerExampleGradients.weighted';
    checkTensor(op, 'weights', weights);
    checkShape(op, 'weights', weights, [this.examples]);
    this.#checkLive(op);
    return scope(() => this.#sum(weights));
  }

  /**
   * The sum over examples of the squares of their gradients: times 1 / examples the diagonal of the empirical Fisher
   * information (Amari, 1998; the labels are those of the data).
   * @returns f32, in the shape of each factor
   * @throws ERR_DISPOSED · ERR_OOM
   */
  squares(): ReadonlyMap<Tensor, Tensor> {
    this.#checkLive('PerExampleGradients.squares');
    return scope(() => {
      const route = routeOf(this.#tape.rows, this.examples);
      return new Map(
        this.#tape.rows.map((rows) => {
          const each = examplesOf(rows, route);
          const sum = sumProduct(each, each, { axis: 0 });
          const [r = 0, cols = 0] = [rows.small.shape[1], rows.big.shape[1]];
          const up = sum.reshape([cols, r]);
          return [rows.factor, rows.role === 'up' ? up : turned(up)] as const;
        }),
      );
    });
  }

  #sum(weights: Tensor): ReadonlyMap<Tensor, Tensor> {
    const { device } = this.loss;
    return new Map(
      this.#tape.rows.map(({ factor, small, big, role, scaling }) => {
        const [M = 0] = small.shape;
        const { examples } = this;
        const ones = full([examples, M / examples], 1, { device });
        const column = multiplyAdd({ a: ones, b: weights.reshape([examples, 1]) });
        const scaled = multiplyAdd({ a: small, b: column.reshape([M, 1]), alpha: scaling });
        if (role === 'down') return [factor, weightGrad(scaled, big)] as const;
        // The same product in the kernel of narrow factors.
        const { dLoraB } = loraExpandBackward(big, scaled, factor, { needs: ['dLoraB'] });
        return [factor, dLoraB as Tensor] as const;
      }),
    );
  }

  #checkLive(op: string): void {
    if (this.norms.disposed) fail('ERR_DISPOSED', op, 'this', 'live', 'disposed');
  }

  /** Frees what the backward pass kept. Twice is a no-op. */
  dispose(): void {
    this.#tape.freeRows();
    this.norms.dispose();
    this.loss.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(PerExampleGradients, 'PerExampleGradients');

/**
 * Gradients of single examples from one forward and one backward pass (Goodfellow, Efficient Per-Example Gradient Computations,
 * 2015, arXiv:1510.01799; Bu and others, Differentially Private Optimization on Large Foundation Models at Small Cost, 2022,
 * arXiv:2210.00038). The backward pass keeps, of each factor, the rows whose product its gradient is: x and dh of loraA, dy
 * and h of loraB. The squared norm of an example is that of its rows' product, computed a layer at a time; the product of
 * one layer, [examples, r, K] or [examples, N, r], is the largest that exists of single gradients. A weighted sum scales the
 * rows.
 *
 * The trained tensors must be factors of {@link Tape.shrink} and {@link Tape.expand}, each of one layer: the methods `lora` and
 * `lora-fa`, without dropout and loraBias.
 * @param pass a forward pass whose rows do not mix examples, like a decoder's with a row of tokens each
 * @throws ERR_TYPE · ERR_VALUE · ERR_UNSUPPORTED for other trained tensors; what the pass throws
 * @example
 * using found = perExampleGradients((tape) => {
 *   const { features } = decoder.forward(tape, { ids, B, T }, { adapters });
 *   return { loss: decoder.loss(tape, features, targets, { scale: 1 / T }).loss, examples: B };
 * });
 * const sums = found.clipped(0.5);
 */
export function perExampleGradients(
  pass: (tape: ModelTape) => ExamplesPass,
  options?: PerExampleOptions,
): PerExampleGradients {
  if (typeof pass !== 'function') throw wrongType(kOp, 'pass', 'a function', pass);
  const { trained } = readOptions(kOp, options, { trained: true });
  if (trained !== undefined) {
    if (!Array.isArray(trained)) throw wrongType(kOp, 'trained', 'an array of tensors', trained);
    for (const [i, tensor] of trained.entries()) checkTensor(kOp, `trained[${i}]`, tensor);
  }
  return scope(() => {
    const tape = new PerExampleTape(trained);
    try {
      const made = pass(tape);
      if (typeof made !== 'object' || made === null) {
        throw wrongType(kOp, 'the result of the pass', 'an object of loss and examples', made);
      }
      const { loss, examples } = made;
      checkInteger(kOp, 'examples', examples, 1, MOST_EXPERTS);
      if (tape.probe === undefined) {
        fail('ERR_VALUE', kOp, 'the pass', 'one with trained factors', 'one without');
      }
      const one = full(loss.shape, 1, { device: loss.tensor.device });
      tape.gradients(kOp, loss, one, [tape.probe], { release: true });
      return new PerExampleGradients(tape, loss.tensor.reshape([1]), examples);
    } catch (error) {
      tape.freeRows();
      throw error;
    }
  });
}

/** min(1, bound / (norm + 1e-6)), as Opacus clips. */
function clipFactors(norms: Tensor, bound: number): Tensor {
  const { device } = norms;
  const shifted = multiplyAdd({ a: norms, c: full([1], 1e-6, { device }) });
  const ratio = multiplyAdd({ a: mapTensor(shifted, 'reciprocal'), alpha: bound });
  const one = full([1], 1, { device });
  const below = mapTensor(multiplyAdd({ a: ratio, c: one, alpha: -1 }), 'relu');
  return multiplyAdd({ a: below, c: one, alpha: -1 });
}

/** [cols, r] as [r, cols]. */
function turned(up: Tensor): Tensor {
  const [, r = 0] = up.shape;
  const eye = Float32Array.from({ length: r * r }, (_, i) => (i % (r + 1) === 0 ? 1 : 0));
  const one = Tensor.from(eye, [r, r], { device: up.device });
  return matmul(one, up);
}
