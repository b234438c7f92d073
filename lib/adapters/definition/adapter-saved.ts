/** Options, gradients and saved state of an adapter's passes. */
import { Value } from '../../autograd/gradient-tape.js';
import { Tape } from '../../autograd/tape.js';
import { fail, markClass, notConstructed, wrongType } from '../../core/errors.js';
import { track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { showShape } from '../../core/validate.js';
import { withLast } from '../../ops/base-weight.js';
import type { ComputePrecision } from '../../ops/compute.js';

/** Options of {@link Adapter.forward}. */
export interface AdapterForwardOptions {
  /** [N] */
  bias?: Tensor;
  /** Seed of dropout and of samplers; required if the method drops or samples in training. */
  seed?: number;
  /** 1 = kept, in the shape of what the method drops. Replaces the generator. */
  dropoutMask?: Tensor;
  /** Default true. `false` turns dropout off and saves nothing. */
  training?: boolean;
  /** Precision of the product with the base weight. */
  compute?: ComputePrecision;
  /** Further operands that the method defines: gates, a second input. */
  inputs?: Readonly<Record<string, Tensor>>;
}

/** The gradients of a layer: of x, of the bias, of the trained tensors and of further inputs. */
export interface AdapterGradients {
  dx?: Tensor;
  dBias?: Tensor;
  parameters: { [name: string]: Tensor };
  inputs: { [name: string]: Tensor };
}

/** Options of {@link Adapter.backward}. */
export interface AdapterBackwardOptions {
  /** Names of parameters and inputs, `dx`, `dBias`; default all. The others are not computed. */
  needs?: readonly string[];
  /** Keep the saved state for another backward pass. Default false: it is freed. */
  keep?: boolean;
}

/** State for the backward pass, which frees it, as does {@link AdapterSaved.dispose}. */
export class AdapterSaved implements Disposable {
  readonly tape: Tape;
  /** @internal */
  readonly y: Value;
  /** @internal All values that a gradient may be wanted of. */
  readonly leaves: ReadonlyMap<string, Value>;
  /** @internal Its own handles to x and the inputs. */
  readonly held: readonly Tensor[];
  readonly #real = true;

  /** @internal */
  constructor(tape: Tape, y: Value, leaves: ReadonlyMap<string, Value>, held: readonly Tensor[]) {
    if (!(tape instanceof Tape)) throw notConstructed('AdapterSaved', "an adapter's forward");
    this.tape = tape;
    this.y = y;
    this.leaves = leaves;
    this.held = held;
    track(this);
  }

  /** Is this a saved state of this library? False for a proxy or an imitation. */
  static is(value: unknown): value is AdapterSaved {
    return typeof value === 'object' && value !== null && #real in value && value.#real;
  }

  get disposed(): boolean {
    return this.tape.disposed;
  }

  /** Frees the saved state. A second call does nothing. */
  dispose(): void {
    this.tape.dispose();
    for (const tensor of this.held) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(AdapterSaved, 'AdapterSaved');

/** Checks the result of a method's formula: y [..., N], a step of the tape, in the dtype of x. */
export function checkResult(op: string, value: unknown, x: Tensor, N: number): void {
  const what = "what the method's forward returns";
  if (!(value instanceof Value))
    throw wrongType(op, what, 'a Value of the tape (t.own makes one from a tensor)', value);
  const { shape, dtype } = value.tensor;
  const expected = withLast(x, N);
  if (shape.length !== expected.length || shape.some((dim, i) => dim !== expected[i])) {
    fail('ERR_SHAPE', op, what, `of shape ${showShape(expected)}`, showShape(shape));
  }
  if (dtype !== x.dtype) fail('ERR_DTYPE', op, what, `${x.dtype}, as x`, dtype);
}

/** Was it saved by an adapter with these parameters? Another method has other names, another layer other shapes. */
export function checkSavedOf(
  op: string,
  { leaves }: AdapterSaved,
  parameters: Readonly<Record<string, Tensor>>,
): void {
  for (const [name, { shape }] of Object.entries(parameters)) {
    const expected = `of a forward pass with ${name} ${showShape(shape)}`;
    const leaf = leaves.get(name);
    const actual = leaf === undefined ? [...leaves.keys()].join(', ') : showShape(leaf.shape);
    if (actual !== showShape(shape)) fail('ERR_VALUE', op, 'saved', expected, `one with ${actual}`);
  }
}

/** y for the caller: a separate tensor if the formula returned x or another operand itself. */
export function ownResult({ tape, y: { tensor }, leaves }: AdapterSaved): Tensor {
  for (const leaf of leaves.values()) {
    if (Tensor.sharesMemory(leaf.tensor, tensor)) return tensor.to({});
  }
  // If the backward pass reads y too, the caller gets its own handle.
  return tape.holds(tensor) ? tensor.reshape(tensor.shape) : tensor;
}
