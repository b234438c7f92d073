import { Value } from '../autograd/gradient-tape.js';
import { Tape } from '../autograd/tape.js';
import type { Device } from '../core/device.js';
import {
  fail,
  LowrankError,
  markClass,
  notConstructed,
  refusal,
  wrongType,
} from '../core/errors.js';
import { outsideScopes, scope, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import {
  checkSameDevice,
  checkShape,
  checkTensor,
  checkVector,
  orDefault,
  ownFields,
  readNames,
  readOptions,
  showShape,
} from '../core/validate.js';
import { type BaseWeight, checkActivations, checkWeight, withLast } from '../ops/base-weight.js';
import type { ComputePrecision } from '../ops/compute.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { mergeLora, unmergeLora } from '../ops/merge.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import { type AdapterDefinition, AdapterMaker, type PeftForm } from './definition.js';
import { type MergedLayer, mergeByProbe, mergeZeroPoints } from './merge.js';

/** What {@link Adapter.forward} takes beside its operands. */
export interface AdapterForwardOptions {
  /** [N] */
  bias?: Tensor;
  /** Of dropout and of samplers; needed where the method drops or samples in training. */
  seed?: number;
  /** 1 = kept, the shape of what the method drops: replaces the generator. */
  dropoutMask?: Tensor;
  /** Default true. `false` turns dropout off and saves nothing. */
  training?: boolean;
  /** Of the product with the base weight. */
  compute?: ComputePrecision;
  /** Further operands that the method names: gates, a second input. */
  inputs?: Readonly<Record<string, Tensor>>;
}

/** The gradients of a layer: of x, of the bias, of the trained tensors and of further inputs. */
export interface AdapterGradients {
  dx?: Tensor;
  dBias?: Tensor;
  parameters: { [name: string]: Tensor };
  inputs: { [name: string]: Tensor };
}

/** What {@link Adapter.backward} takes beside its operands. */
export interface AdapterBackwardOptions {
  /** Names of parameters and inputs, `dx`, `dBias`; default all there are. Others cost nothing. */
  needs?: readonly string[];
  /** Keep the saved state for another backward pass; default false: it is freed. */
  keep?: boolean;
}

/** What the backward pass needs; freed by it, or by {@link AdapterSaved.dispose}. */
export class AdapterSaved implements Disposable {
  readonly tape: Tape;
  /** @internal */
  readonly y: Value;
  /** @internal Everything a gradient may be wanted of. */
  readonly leaves: ReadonlyMap<string, Value>;
  /** @internal Its own hold on x and on the inputs. */
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

  /** Is this a saved state of ours? False for a proxy or a forgery of one. */
  static is(value: unknown): value is AdapterSaved {
    return typeof value === 'object' && value !== null && #real in value && value.#real;
  }

  get disposed(): boolean {
    return this.tape.disposed;
  }

  /** Frees what was saved. Twice is a no-op. */
  dispose(): void {
    this.tape.dispose();
    for (const tensor of this.held) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(AdapterSaved, 'AdapterSaved');

/** What a method's formula returned: y [..., N], a step of the tape, in the dtype of x. */
function checkResult(op: string, value: unknown, x: Tensor, N: number): void {
  const what = "what the method's forward returns";
  if (!(value instanceof Value))
    throw wrongType(op, what, 'a Value of the tape (t.own makes one of a tensor)', value);
  const { shape, dtype } = value.tensor;
  const expected = withLast(x, N);
  if (shape.length !== expected.length || shape.some((dim, i) => dim !== expected[i])) {
    fail('ERR_SHAPE', op, what, `of shape ${showShape(expected)}`, showShape(shape));
  }
  if (dtype !== x.dtype) fail('ERR_DTYPE', op, what, `${x.dtype}, as x`, dtype);
}

/** Was it saved by an adapter with such parameters? That of another method has others, and of another layer other shapes. */
function checkSavedOf(
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

/** y for the caller: a tensor of its own, where the formula returned x or another operand as it came. */
function ownResult({ tape, y: { tensor }, leaves }: AdapterSaved): Tensor {
  for (const leaf of leaves.values()) {
    if (Tensor.sharesMemory(leaf.tensor, tensor)) return tensor.to({});
  }
  // Where the backward pass reads y too, the caller has a handle of its own.
  return tape.kept.includes(tensor) ? tensor.reshape(tensor.shape) : tensor;
}

/** Functions as methods, which take the place of such as want narrower arguments. */
type Methods<T> = {
  [K in keyof T]: NonNullable<T[K]> extends (...args: infer A) => infer R
    ? { method(...args: A): R }['method'] | Extract<T[K], undefined>
    : T[K];
};

/** A definition whatever its settings and tensors. */
export type AnyDefinition = Methods<
  Omit<AdapterDefinition<object, string, string, unknown>, 'peft'>
> & {
  readonly peft?: Methods<PeftForm<object, string>>;
};

/**
 * One layer's adapter of any method: tensors by name, forward, backward, merge.
 * @example
 * const adapter = vera.create({ inFeatures: 64, outFeatures: 32, r: 256, seed: 1 });
 * const { y, saved } = adapter.forward(x, w4);
 * const { dx, parameters } = adapter.backward(dy, saved);
 */
export class Adapter<C extends object = object> implements Disposable {
  readonly method: string;
  readonly config: Readonly<C>;
  /** The trained tensors. */
  readonly parameters: Readonly<Record<string, Tensor>>;
  /** The frozen ones. */
  readonly buffers: Readonly<Record<string, Tensor>>;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly device: Device;
  readonly definition: AnyDefinition;
  /** Integer tables of the method; {@link Adapter.refresh} draws them anew. */
  indexes: Readonly<Record<string, Int32Array>>;
  /** @internal What the method prepared. A field that scopes see: its tensors live as long as this. */
  state: unknown;
  readonly #make: AdapterMaker<object>;

  /** @internal Use {@link AdapterMethod}. */
  constructor(
    definition: AnyDefinition,
    make: AdapterMaker<object>,
    tensors: Readonly<Record<string, Tensor>>,
    indexes: Readonly<Record<string, Int32Array>>,
  ) {
    if (!(make instanceof AdapterMaker)) {
      throw notConstructed('Adapter', 'create of a method, like adapters.lora.create');
    }
    const pick = (names: readonly string[]): Readonly<Record<string, Tensor>> =>
      Object.freeze(
        Object.fromEntries(
          names.flatMap((name) => {
            const shape = make.shapes[name];
            if (shape === undefined) return [];
            const tensor = checkTensor(definition.method, name, tensors[name]);
            checkShape(definition.method, name, tensor, shape);
            checkSameDevice(definition.method, name, tensor, make);
            return [[name, tensor]];
          }),
        ),
      );
    this.definition = definition;
    this.method = definition.method;
    this.config = make.config as C;
    this.parameters = pick(definition.trained);
    this.buffers = pick(definition.frozen ?? []);
    this.inFeatures = make.K;
    this.outFeatures = make.N;
    this.device = make.device;
    this.#make = make;
    this.indexes = Object.freeze({ ...indexes });
    this.state = this.#prepared();
    track(this);
  }

  #prepared(): unknown {
    const tensors = { ...this.parameters, ...this.buffers };
    return this.definition.prepare?.(this.#make, this.indexes, tensors);
  }

  /**
   * Draws the integer tables anew, for methods that choose by the values of their tensors (VB-LoRA's
   * mixtures): reads them on the host. Use or free the saved states of forward passes before.
   * @throws ERR_DISPOSED, ERR_OOM
   * @example
   * if (step % 100 === 0) adapter.refresh();
   */
  refresh(): void {
    const { drawIndexes } = this.definition;
    if (drawIndexes === undefined) return;
    outsideScopes(() => {
      const tensors = { ...this.parameters, ...this.buffers };
      this.indexes = Object.freeze({ ...drawIndexes(this.#make, tensors) });
      const before = this.state;
      this.state = this.#prepared();
      disposeAll(before);
    });
  }

  /** Number of trained values. */
  get parameterCount(): number {
    return Object.values(this.parameters).reduce((sum, { size }) => sum + size, 0);
  }

  /**
   * `y` [..., N] in the dtype of x, and what {@link Adapter.backward} needs.
   * @param x [..., K]
   * @param w [N, K] dense or quantised, frozen
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
   *   ERR_OOM
   */
  forward(
    x: Tensor,
    w: BaseWeight,
    options?: AdapterForwardOptions,
  ): { y: Tensor; saved: AdapterSaved } {
    const op = `${this.method}.forward`;
    checkTensor(op, 'x', x);
    const { weight, N, K } = checkWeight(op, w);
    if (N !== this.outFeatures || K !== this.inFeatures) {
      const expected = `of shape [N = ${this.outFeatures}, K = ${this.inFeatures}]`;
      fail('ERR_SHAPE', op, 'w', expected, showShape(w.shape));
    }
    checkActivations(op, 'x', x, weight, 'K', K);
    checkSameDevice(op, 'the adapter', this, x);
    const given = readOptions(op, options, {
      bias: true,
      seed: true,
      dropoutMask: true,
      training: true,
      compute: true,
      inputs: true,
    });
    const inputs = ownFields(op, given.inputs);
    const training = given.training ?? true;
    if (typeof training !== 'boolean') throw wrongType(op, 'training', 'a boolean', training);
    if (given.bias !== undefined) {
      checkVector(op, 'bias', checkTensor(op, 'bias', given.bias), N);
      checkSameDevice(op, 'bias', given.bias, x);
    }
    return scope(() => {
      const tape = new Tape({
        recording: training,
        dropout: {
          ...(given.seed === undefined ? {} : { seed: given.seed }),
          ...(given.dropoutMask === undefined ? {} : { mask: given.dropoutMask }),
        },
        ...(given.compute === undefined ? {} : { compute: given.compute }),
      });
      const leaves = new Map<string, Value>();
      const held: Tensor[] = [];
      const leaf = (name: string, tensor: Tensor): Value => {
        const value = tape.variable(tensor);
        leaves.set(name, value);
        return value;
      };
      const own = (name: string, tensor: Tensor): Value => {
        const hold = tensor.reshape(tensor.shape);
        held.push(hold);
        return leaf(name, hold);
      };
      const map = (from: Readonly<Record<string, Tensor>>, to: (n: string, t: Tensor) => Value) =>
        Object.fromEntries(Object.entries(from).map(([name, tensor]) => [name, to(name, tensor)]));
      const xValue = own('dx', x);
      const value = this.#formula(op, inputs, tape, {
        x: xValue,
        w,
        bias: given.bias === undefined ? undefined : own('dBias', given.bias),
        p: {
          ...map(this.parameters, leaf),
          ...map(this.buffers, (_, tensor) => tape.constant(tensor)),
        },
        config: this.config,
        state: this.state,
        inputs: map(inputs as Record<string, Tensor>, (name, tensor) => {
          if (leaves.has(name)) {
            const expected = 'given by a name that no other operand has';
            fail('ERR_VALUE', op, `inputs.${name}`, expected, `'${name}'`);
          }
          return own(name, checkTensor(op, `inputs.${name}`, tensor));
        }),
        N,
        K,
        training,
        seed: given.seed,
      });
      checkResult(op, value, x, N);
      const saved = new AdapterSaved(tape, value, leaves, held);
      const y = ownResult(saved);
      if (!training) saved.dispose();
      return { y, saved };
    });
  }

  /** What the method's formula returns. A step that an input is missing for does not know what it was: here it is named. */
  #formula(op: string, given: object, ...call: Parameters<AnyDefinition['forward']>): Value {
    try {
      return this.definition.forward(...call);
    } catch (error) {
      const missing = this.definition.inputs?.find((name) => !(name in given));
      if (missing === undefined || !(error instanceof TypeError)) throw error;
      const text = refusal(op, `inputs.${missing}`, `given (${this.method} needs it)`, 'none');
      throw new LowrankError('ERR_VALUE', text, { op, cause: error });
    }
  }

  /**
   * Gradients of `Σ y ⊙ dy`, by the chain rule over the steps of the forward pass.
   * @param dy [..., N], the dtype of y
   * @param saved of the forward pass; freed afterwards unless `keep`
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
   */
  backward(dy: Tensor, saved: AdapterSaved, options?: AdapterBackwardOptions): AdapterGradients {
    const op = `${this.method}.backward`;
    if (!AdapterSaved.is(saved)) {
      throw wrongType(op, 'saved', `the saved state of ${this.method}.forward`, saved);
    }
    const given = readOptions(op, options, { needs: true, keep: true });
    const { leaves, tape } = saved;
    checkSavedOf(op, saved, this.parameters);
    const known = [...leaves.keys()];
    const names = readNames(op, 'needs', orDefault<readonly string[]>(given.needs, known), known);
    const wanted = names.map((name) => leaves.get(name) as Value);
    const found = tape.gradients(op, saved.y, dy, wanted);
    const gradients: AdapterGradients = { parameters: {}, inputs: {} };
    names.forEach((name, i) => {
      const gradient = found[i];
      if (gradient === undefined) return;
      if (name === 'dx') gradients.dx = gradient;
      else if (name === 'dBias') gradients.dBias = gradient;
      else if (name in this.parameters) gradients.parameters[name] = gradient;
      else gradients.inputs[name] = gradient;
    });
    if (given.keep !== true) saved.dispose();
    return gradients;
  }

  /**
   * The layer with what is added to it (or, with sign -1, taken out), where that is a product of factors or zero-points.
   */
  #added(
    op: string,
    w: BaseWeight,
    bias: Tensor | undefined,
    sign: 1 | -1,
  ): MergedLayer | undefined {
    const { update, zeroPointUpdate } = this.definition;
    const { config, inFeatures: K, outFeatures: N } = this;
    checkWeight(op, w);
    checkShape(op, 'w', w as Tensor, [N, K]);
    if (bias !== undefined) {
      checkVector(op, 'bias', checkTensor(op, 'bias', bias), N);
      checkSameDevice(op, 'bias', bias, w);
    }
    const copy = () => (bias === undefined ? {} : { bias: bias.to({}) });
    const tensors = { ...this.parameters, ...this.buffers };
    return scope(() => {
      if (QuantizedWeight.is(w) && w.zeroPoints !== undefined) {
        const added = zeroPointUpdate?.(tensors, { N, K, config }, w.blocksize);
        if (added !== undefined) return { ...mergeZeroPoints(w, added, sign), ...copy() };
      }
      if (update === undefined) return undefined;
      const own = w instanceof Tensor ? w.to({ dtype: w.dtype }) : w;
      const parts = update(tensors, config, { N, K, config });
      const merged = sign === 1 ? mergeLora(own, parts) : unmergeLora(own, parts);
      const { loraBias, scaling = 1 } = parts;
      if (loraBias === undefined || (bias === undefined && sign === -1))
        return { ...merged, ...copy() };
      const shift = {
        a: loraBias,
        alpha: sign * scaling,
        dtype: bias?.dtype ?? 'f32',
        ...(bias === undefined ? {} : { c: bias }),
      } as const;
      return { ...merged, bias: multiplyAdd(shift) };
    });
  }

  /**
   * The layer as a weight and a bias that need no adapter: `y = x · weightᵀ + bias`, for methods
   * that are affine in x. Dense weights keep their dtype; a quantised one is encoded again in its
   * format, which loses part of a small update ({@link MergedLayer}). QA-LoRA's goes into the zero-points
   * of an int4 weight instead, where its groups are whole blocks, and nothing is lost.
   * @param w [N, K]
   * @throws ERR_UNSUPPORTED where y is no affine function of x; else as {@link Adapter.forward}
   */
  merge(w: BaseWeight, options?: { bias?: Tensor }): MergedLayer {
    const op = `${this.method}.merge`;
    if (this.definition.mergeable === false) {
      fail('ERR_UNSUPPORTED', op, 'the method', 'affine in x, to be merged', this.method);
    }
    const { bias } = readOptions(op, options, { bias: true });
    const added = this.#added(op, w, bias, 1);
    if (added !== undefined) return added;
    return mergeByProbe(w, bias, this.inFeatures, (x, dense) => {
      const given = { training: false, ...(bias === undefined ? {} : { bias }) };
      return this.forward(x, dense, given).y;
    });
  }

  /**
   * The weight that {@link Adapter.merge} was given, from the one that it gave, with the adapter as it was then: within
   * a rounding to the weight's dtype or codes; from zero-points within one to f32.
   * @param w [N, K]
   * @param options.bias [N], that of the merged layer: what the adapter has added to it is taken out too
   * @returns a weight (and a bias, where one is given) of its own; what was given stays
   * @throws ERR_UNSUPPORTED where the method adds no product of factors (keep the weight that was merged); else as
   *   {@link Adapter.forward}
   */
  unmerge(w: BaseWeight, options?: { bias?: Tensor }): MergedLayer {
    const op = `${this.method}.unmerge`;
    const { bias } = readOptions(op, options, { bias: true });
    const taken = this.#added(op, w, bias, -1);
    if (taken === undefined) {
      const expected = 'one that adds a product of factors (keep the weight from before the merge)';
      fail('ERR_UNSUPPORTED', op, 'the method', expected, this.method);
    }
    return taken;
  }

  /** Frees the tensors. Twice is a no-op. */
  dispose(): void {
    for (const tensor of Object.values(this.parameters)) tensor.dispose();
    for (const tensor of Object.values(this.buffers)) tensor.dispose();
    disposeAll(this.state);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Frees what is disposable in a prepared state: itself, or in arrays and plain objects. */
function disposeAll(value: unknown): void {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return;
  const dispose = (value as Partial<Disposable>)[Symbol.dispose];
  if (typeof dispose === 'function') dispose.call(value);
  else for (const member of Object.values(value)) disposeAll(member);
}
