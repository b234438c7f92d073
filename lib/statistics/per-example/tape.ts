import type { BackwardFunction, Kept, Value } from '../../autograd/gradient-tape.js';
import { ModelTape } from '../../autograd/model/model-tape.js';
import { fail } from '../../core/errors.js';
import { outsideScopes } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';

const kOp = 'perExampleGradients';

/** A factor's gradient as a product over rows: `scaling · smallᵀ · big`, or its transpose. */
export interface FactorRows {
  /** What is trained. */
  readonly factor: Tensor;
  /** [M, r] f32: dh of loraA, h of loraB. */
  readonly small: Tensor;
  /** [M, K] of loraA: x; [M, N] of loraB: dy. */
  readonly big: Tensor;
  readonly role: 'down' | 'up';
  readonly scaling: number;
}

/**
 * A tape that keeps both sides of the product that each factor's gradient is, instead of the gradient. Trained tensors may
 * only be factors of {@link Tape.shrink} and {@link Tape.expand}.
 */
export class PerExampleTape extends ModelTape {
  readonly rows: FactorRows[] = [];
  readonly #trained = new Set<Value>();
  readonly #factors = new Set<Tensor>();
  #probe: Value | undefined;
  readonly #wanted: readonly Tensor[] | undefined;
  /** Is a step recorded that may take trained tensors? */
  #inside = false;

  /** @param wanted those whose gradients count; default all variables */
  constructor(wanted?: readonly Tensor[]) {
    super();
    this.#wanted = wanted;
  }

  /** What every kept product depends on: its gradient runs the backward pass that keeps them. */
  get probe(): Value | undefined {
    return this.#probe;
  }

  override variable(tensor: Tensor): Value {
    if (this.#wanted?.includes(tensor) === false) return super.constant(tensor);
    const value = super.variable(tensor);
    this.#trained.add(value);
    return value;
  }

  override record(
    output: Tensor,
    inputs: readonly Value[],
    keeps: readonly Kept[],
    backward: BackwardFunction,
  ): Value {
    if (!this.#inside && inputs.some((input) => this.#trained.has(input))) refuseMethod();
    return super.record(output, inputs, keeps, backward);
  }

  override shrink(x: Value, a: Value, options: { scaling?: number; dropout?: number } = {}): Value {
    const { scaling = 1, dropout = 0 } = options;
    if (dropout > 0) fail('ERR_UNSUPPORTED', kOp, 'dropout', '0', String(dropout));
    if (this.#trained.has(x)) refuseMethod();
    const h = this.#within(() => super.shrink(x, a, options));
    if (!this.#trained.has(a)) return h;
    return this.#watch(h, a, (dh) => ({ small: dh, big: x.tensor, role: 'down', scaling }));
  }

  override expand(
    x: Value,
    w: BaseWeight,
    h: Value,
    b: Value,
    options: { scaling?: number; bias?: Value | undefined } = {},
  ): Value {
    const { scaling = 1, bias } = options;
    if ([x, h, bias].some((each) => each !== undefined && this.#trained.has(each))) refuseMethod();
    const y = this.#within(() => super.expand(x, w, h, b, options));
    if (!this.#trained.has(b)) return y;
    return this.#watch(y, b, (dy) => ({ small: h.tensor, big: dy, role: 'up', scaling }));
  }

  /** The whole block at once: what it would free is kept for the clipped sum. */
  override recompute(x: Value, body: (tape: ModelTape, x: Value) => Value): Value {
    return body(this, x);
  }

  #within(step: () => Value): Value {
    this.#inside = true;
    try {
      return step();
    } finally {
      this.#inside = false;
    }
  }

  /** The same value, whose gradient is kept on its way. */
  #watch(y: Value, { tensor }: Value, rowsOf: (dy: Tensor) => Omit<FactorRows, 'factor'>): Value {
    if ([...this.#factors].some((known) => Tensor.sharesMemory(known, tensor))) refuseMethod();
    this.#factors.add(tensor);
    this.#probe ??= outsideScopes(() =>
      super.variable(Tensor.zeros([1], { device: tensor.device })),
    );
    return this.record(y.tensor.reshape(y.shape), [y, this.#probe], [], (dy, pass) => {
      const { small, big, role, scaling } = rowsOf(dy);
      // Handles of its own: the backward pass frees the others.
      const kept = outsideScopes(() => ({ small: folded(small), big: folded(big) }));
      this.rows.push({ factor: tensor, ...kept, role, scaling });
      pass.give(y, dy);
    });
  }

  override dispose(): void {
    super.dispose();
    this.#probe?.tensor.dispose();
  }

  /** Frees what the backward pass kept. */
  freeRows(): void {
    for (const { small, big } of this.rows.splice(0)) {
      small.dispose();
      big.dispose();
    }
  }
}

/** [M, N] over the same memory. */
function folded(tensor: Tensor): Tensor {
  const cols = tensor.shape.at(-1) ?? 1;
  return tensor.reshape([tensor.size / Math.max(cols, 1), cols]);
}

function refuseMethod(): never {
  const expected =
    'factors loraA and loraB of one layer each, as those of lora and lora-fa without loraBias';
  return fail('ERR_UNSUPPORTED', kOp, 'the trained tensors', expected, 'another use of one');
}
