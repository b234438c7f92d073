import type { Value } from '../../autograd/gradient-tape.js';
import { ModelTape } from '../../autograd/model/model-tape.js';
import type { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';

/** A low-rank update in a layer's formula: `scaling · h · bᵀ`. */
export interface ObservedUpdate {
  /** [..., r] f32 */
  readonly h: Tensor;
  /** [N, r] */
  readonly b: Tensor;
  readonly scaling: number;
}

/** What is told of a linear layer in a pass. */
export interface LayerObserver {
  /** x of the layer, [..., K], in the forward pass. Layers that read the same value are told of the same tensor. */
  input?(x: Tensor): void;
  /** The low-rank update that an adapter adds, in the forward pass. */
  update?(update: ObservedUpdate): void;
  /** The gradient of the layer's output [..., N] and its x, in the backward pass. */
  gradient?(dy: Tensor, x: Tensor): void;
}

type Expand = Parameters<ModelTape['expand']>;
type ExpandWithNorms = Parameters<ModelTape['expandWithNorms']>;

/** A tape that tells observers of the linear layers over certain base weights. It changes no value. */
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
    const update = { h: h.tensor, b: b.tensor, scaling: options?.scaling ?? 1 };
    return this.#observed(super.expand(x, w, h, b, options), x, w, update);
  }

  override expandWithNorms(...[x, w, h, parts, kept]: ExpandWithNorms) {
    const { y, norms } = super.expandWithNorms(x, w, h, parts, kept);
    const update = { h: h.tensor, b: parts.b.tensor, scaling: parts.scaling ?? 1 };
    return { y: this.#observed(y, x, w, update), norms };
  }

  #observed(y: Value, x: Value, w: BaseWeight, update?: ObservedUpdate): Value {
    const observer = this.#observers.get(w);
    if (observer === undefined) return y;
    observer.input?.(x.tensor);
    if (update !== undefined) observer.update?.(update);
    const { gradient } = observer;
    if (gradient === undefined || !y.differentiable) return y;
    const same = y.tensor.reshape(y.shape);
    return this.record(same, [y], [x.tensor], (dy, pass) => {
      gradient.call(observer, dy, x.tensor);
      pass.give(y, dy);
    });
  }
}
