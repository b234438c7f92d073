import type { Value } from '../../autograd/gradient-tape.js';
import { Tape } from '../../autograd/tape.js';
import { checkShape, checkTensor, checkVector } from '../../core/check-tensor.js';
import type { Device } from '../../core/device.js';
import { fail, LowrankError, notConstructed, refusal, wrongType } from '../../core/errors.js';
import { outsideScopes, scope, track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkSameDevice,
  orDefault,
  ownFields,
  readNames,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { type BaseWeight, checkActivations, checkWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { type MergeParts, mergeLora, unmergeLora } from '../../ops/lora/merge.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import {
  type AdapterBackwardOptions,
  type AdapterForwardOptions,
  type AdapterGradients,
  AdapterSaved,
  checkResult,
  checkSavedOf,
  ownResult,
} from './adapter-saved.js';
import { type AdapterCall, AdapterMaker, type AdapterSize, type LayerPenalty } from './maker.js';
import { type MergedLayer, mergeByProbe, mergeZeroPoints } from './merge.js';
import type { PeftForm, Regenerated } from './peft-form.js';
import type { SharedBy } from './sharing.js';

/**
 * A published method in one object: its tensors, its formula and its PEFT names. Backward passes,
 * merging, checks, checkpoints and the command line are derived from it.
 */
export interface AdapterDefinition<
  C extends object = object,
  P extends string = string,
  B extends string = string,
  S = unknown,
> {
  /**
   * Letters, digits, - and _, by convention in lower case. It names folders and identifies the
   * method on the command line.
   */
  readonly method: string;
  /** Authors, title, year, arXiv number. */
  readonly reference: string;
  /** Every setting with the paper's default. */
  readonly defaults: Readonly<C>;
  /** Names of the trained tensors. All names of tensors and inputs are distinct, and none is `dx` or `dBias`. */
  readonly trained: readonly P[];
  /** Names of the frozen tensors; default none. */
  readonly frozen?: readonly B[];
  /** The shape of every tensor. A tensor without a shape does not exist with these settings. */
  readonly shapes: (size: AdapterSize<C>) => Readonly<Partial<Record<P | B, readonly number[]>>>;
  /**
   * New tensors; with most methods training then starts at the base model. `shared` has the tensors that another layer
   * has already made, in {@link AdapterMethod.createAll}; they replace the returned ones of the same names.
   */
  readonly init: (
    make: AdapterMaker<C, P | B>,
    shared?: Readonly<Partial<Record<P | B, Tensor>>>,
  ) => Readonly<Partial<Record<P | B, Tensor>>>;
  /**
   * Tensors that layers of a model share, and between which layers. {@link AdapterMethod.createAll} draws each once, and a
   * trainer gives a trained one the sum of its layers' gradients. What PEFT stores once for all layers (`peft.shared`) is
   * shared by the model without being named here.
   */
  readonly shared?: Readonly<Partial<Record<P | B, SharedBy>>>;
  /** New integer tables: which entries are trained, which vectors are mixed. */
  readonly drawIndexes?: (
    make: AdapterMaker<C, P | B>,
    tensors: Readonly<Record<P | B, Tensor>>,
  ) => Readonly<Record<string, Int32Array>>;
  /**
   * Frozen tensors and integer tables that are drawn for all layers of a model together, in their order, instead of for
   * each layer alone.
   */
  readonly drawTogether?: (
    makes: readonly AdapterMaker<C, P | B>[],
  ) => readonly Regenerated<P | B>[];
  /** The integer tables depend on the values of the trained tensors: a trainer draws them anew at every step. */
  readonly indexesFollowValues?: boolean;
  /** Constants of an adapter that are not tensors of the method: maps, tables. */
  readonly prepare?: (
    make: AdapterMaker<C, P | B>,
    indexes: Readonly<Record<string, Int32Array>>,
    tensors: Readonly<Record<P | B, Tensor>>,
  ) => S;
  /** Inputs besides x that every call must give. */
  readonly inputs?: readonly string[];
  /** y [..., N] in the dtype of x. */
  readonly forward: (t: Tape, call: AdapterCall<C, P | B, S>) => Value;
  /** Rejects impossible settings: `['r', 'a divisor of K', '5']`; default none. */
  readonly check?: (
    size: AdapterSize<C>,
  ) => readonly [name: string, expected: string, actual: string] | undefined;
  /** Learning rate relative to LoRA's in the paper's tables, for methods that train with a far higher one. */
  readonly rate?: number;
  /** Is y an affine function of x, so that a weight and a bias can replace it? Default true. */
  readonly mergeable?: boolean;
  /**
   * For methods that add `scaling · loraB · core · loraA` to the weight: the operands for {@link mergeLora}, so that
   * merging is one pass over the weight; and `scaling · loraBias` for the bias, [N], if there is one. Without it,
   * merging evaluates the layer.
   */
  readonly update?: (
    p: Readonly<Record<P | B, Tensor>>,
    config: Readonly<C>,
    size: AdapterSize<C>,
  ) => MergeParts & { readonly loraBias?: Tensor };
  /**
   * What the adapter adds to the zero-points of a weight that has them, [N, K / blocksize] f32, if its update is
   * constant within each block of a row: merging then changes nothing else. Undefined if it is not.
   */
  readonly zeroPointUpdate?: (
    p: Readonly<Record<P | B, Tensor>>,
    size: AdapterSize<C>,
    blocksize: number,
  ) => Tensor | undefined;
  /** The weight that the method ends with, for one that quantises it itself: for {@link Adapter.freeze}. */
  readonly freeze?: (
    p: Readonly<Record<P | B, Tensor>>,
    w: BaseWeight,
    size: AdapterSize<C>,
  ) => QuantizedWeight;
  /**
   * A term that the method adds to the loss of a step for one layer, and its gradients by parameter. A trainer takes the mean
   * over layers. `seed` is that of the layer's forward pass.
   */
  readonly penalty?: (adapter: Adapter, options: { seed: number }) => LayerPenalty;
  readonly peft?: PeftForm<C, P | B>;
}

/** Declares functions as methods, so that they may take narrower arguments. */
type Methods<T> = {
  [K in keyof T]: NonNullable<T[K]> extends (...args: infer A) => infer R
    ? { method(...args: A): R }['method'] | Extract<T[K], undefined>
    : T[K];
};

/** A definition with any settings and tensors. */
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
  /** The frozen tensors. */
  readonly buffers: Readonly<Record<string, Tensor>>;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly device: Device;
  readonly definition: AnyDefinition;
  /** Integer tables of the method. {@link Adapter.refresh} draws them anew. */
  indexes: Readonly<Record<string, Int32Array>>;
  /**
   * @internal The result of the method's `prepare`. Scopes see this field, so its tensors live as
   * long as the adapter.
   */
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
   * mixtures). It reads the tensors on the host. Use or free the saved states of earlier forward
   * passes first.
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
   * `y` [..., N] in the dtype of x, and the state for {@link Adapter.backward}.
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
            fail('ERR_VALUE', op, `inputs.${name}`, expected, `"${name}"`);
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

  /** Runs the method's formula. A step whose input is missing cannot say which one, so the error is made here. */
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
   * @param saved from the forward pass; freed afterwards unless `keep`
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
   * The layer with its update added (or with sign -1 subtracted), if that is a product of factors or zero-points.
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
   * The layer as a weight and a bias without an adapter: `y = x · weightᵀ + bias`, for methods that are
   * affine in x. A dense weight keeps its dtype. A quantised one is encoded again in its format, which
   * loses part of a small update ({@link MergedLayer}). QA-LoRA's update goes into the zero-points of an
   * int4 weight instead, if its groups are whole blocks, and nothing is lost.
   * @param w [N, K]
   * @throws ERR_UNSUPPORTED if y is not an affine function of x; otherwise as
   * {@link Adapter.forward}
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
   * Restores the weight before {@link Adapter.merge} from the merged one, with the adapter as it was then: up to a
   * rounding to the weight's dtype or codes, or with zero-points up to a rounding to f32.
   * @param w [N, K]
   * @param options.bias [N] of the merged layer; the adapter's contribution is subtracted from it too
   * @returns a new weight (and a new bias, if one is given); the operands stay unchanged
   * @throws ERR_UNSUPPORTED if the method does not add a product of factors (keep the weight from before the
   * merge); otherwise as {@link Adapter.forward}
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

  /**
   * The layer as integer codes without an adapter, for methods that train their quantiser: `y = x · weightᵀ + bias` with nothing
   * lost. {@link Adapter.merge} gives the same values in the form of the base.
   * @param w [N, K], the base
   * @throws ERR_UNSUPPORTED for other methods · ERR_VALUE for trained steps that are not positive · ERR_TYPE · ERR_SHAPE ·
   * ERR_DISPOSED · ERR_OOM
   */
  freeze(w: BaseWeight): QuantizedWeight {
    const op = `${this.method}.freeze`;
    const { freeze } = this.definition;
    const { config, inFeatures: K, outFeatures: N } = this;
    if (freeze === undefined) {
      fail('ERR_UNSUPPORTED', op, 'the method', 'one that trains its quantiser', this.method);
    }
    checkWeight(op, w);
    checkShape(op, 'w', w as Tensor, [N, K]);
    return scope(() => freeze({ ...this.parameters, ...this.buffers }, w, { N, K, config }));
  }

  /** Frees the tensors. A second call does nothing. */
  dispose(): void {
    for (const tensor of Object.values(this.parameters)) tensor.dispose();
    for (const tensor of Object.values(this.buffers)) tensor.dispose();
    disposeAll(this.state);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Frees everything disposable in a prepared state: itself, or in arrays and plain objects. */
function disposeAll(value: unknown): void {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return;
  const dispose = (value as Partial<Disposable>)[Symbol.dispose];
  if (typeof dispose === 'function') dispose.call(value);
  else for (const member of Object.values(value)) disposeAll(member);
}
