import type { Value } from '../../autograd/gradient-tape.js';
import { ModelTape } from '../../autograd/model/model-tape.js';
import type { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';

/** What is told of a linear layer in a pass. */
export interface LayerObserver {
  /** x of the layer, [..., K], in the forward pass. Layers that read the same value are told of the same tensor. */
  input?(x: Tensor): void;
  /** The gradient of the layer's output [..., N] and its x, in the backward pass. */
  gradient?(dy: Tensor, x: Tensor): void;
}

type Expand = Parameters<ModelTape['expand']>;
type ExpandWithNorms = Parameters<ModelTape['expandWithNorms']>;

/**
 * Tells of the gradient of a layer's output in the backward pass.
 * @returns y, through which the gradient goes
 */
export function watchGradient(
  tape: ModelTape,
  x: Value,
  y: Value,
  gradient: (dy: Tensor, x: Tensor) => void,
): Value {
  if (!y.differentiable) return y;
  const same = y.tensor.reshape(y.shape);
  return tape.record(same, [y], [x.tensor], (dy, pass) => {
    gradient(dy, x.tensor);
    pass.give(y, dy);
  });
}

/**
 * A tape that tells observers of the linear layers over certain base weights. Values are those of an evaluation: without dropout.
 */
export class ObservingTape extends ModelTape {
  readonly #observers: ReadonlyMap<BaseWeight, LayerObserver>;

  constructor(observers: ReadonlyMap<BaseWeight, LayerObserver>, recording: boolean) {
    super({ recording });
    this.#observers = observers;
  }

  override linear(x: Value, w: BaseWeight, bias?: Value): Value {
    return this.#observed(super.linear(x, w, bias), x, w);
  }

  override expand(...[x, w, h, b, options]: Expand): Value {
    return this.#observed(super.expand(x, w, h, b, options), x, w);
  }

  override expandWithNorms(...[x, w, h, parts, kept]: ExpandWithNorms) {
    const { y, norms } = super.expandWithNorms(x, w, h, parts, kept);
    return { y: this.#observed(y, x, w), norms };
  }

  override shrink(x: Value, a: Value, options: { scaling?: number; dropout?: number } = {}): Value {
    return super.shrink(x, a, { ...options, dropout: 0 });
  }

  override dropout(a: Value): Value {
    return a;
  }

  #observed(y: Value, x: Value, w: BaseWeight): Value {
    const observer = this.#observers.get(w);
    if (observer === undefined) return y;
    observer.input?.(x.tensor);
    if (observer.gradient === undefined) return y;
    return watchGradient(this, x, y, (dy, input) => observer.gradient?.(dy, input));
  }
}
