import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, markClass, wrongType } from '../core/errors.js';
import { scope, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, readOptions } from '../core/validate.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { multiplyAdd } from '../ops/elementwise.js';
import type { GroupedSaved } from '../ops/grouped/grouped-saved.js';
import { matmulInputGrad } from '../ops/matmul.js';
import type { Indices } from '../ops/model/indices.js';

/** What a step keeps for the backward pass. */
export type Kept = Tensor | GroupedSaved | Indices;

/** A tensor on a {@link GradientTape}: either a gradient of it may be wanted, or it is a constant. */
export class Value {
  readonly tensor: Tensor;
  /** Can a gradient reach a variable through this value? */
  readonly differentiable: boolean;

  /** @internal */
  constructor(tensor: Tensor, differentiable: boolean) {
    if (!Tensor.is(tensor)) {
      const expected = 'a Tensor (a Value comes from Tape.variable, constant or own)';
      throw wrongType('Value', 'tensor', expected, tensor);
    }
    this.tensor = tensor;
    this.differentiable = differentiable;
  }

  get shape(): readonly number[] {
    return this.tensor.shape;
  }
}
markClass(Value, 'Value');

/** What the backward function of a step works with. */
export interface BackwardPass {
  /** Is a gradient of this input wanted? */
  wants(input: Value): boolean;
  /** Adds to the gradient of an input; the tensor has the input's shape. */
  give(input: Value, gradient: Tensor): void;
  /**
   * Adds `dy · w` to the gradient of an input, but later: a step that computes another part of that
   * gradient can add it in the same pass ({@link BackwardPass.takeBase}).
   */
  giveBase(input: Value, dy: Tensor, w: BaseWeight): void;
  /**
   * The gradient of an input that has been summed so far, or `undefined`. The caller takes it over: it
   * adds it in a pass of its own, and gives the sum.
   */
  take(input: Value): Tensor | undefined;
  /** Takes over a product that was announced for this input: the caller now computes it. */
  takeBase(input: Value): { dy: Tensor; w: BaseWeight } | undefined;
}

/** Turns the gradient of a step's output into gradients of its inputs. */
export type BackwardFunction = (dy: Tensor, pass: BackwardPass) => void;

interface Step {
  readonly inputs: readonly Value[];
  readonly output: Value;
  readonly backward: BackwardFunction;
  /** What only the backward function of this step and of later ones reads. */
  readonly keeps: readonly Kept[];
}

/** How {@link GradientTape.gradients} works. */
export interface GradientsOptions {
  /**
   * Free what each step kept as soon as its backward function has run, and dispose the tape at the end: the pass then
   * needs little more memory than the forward pass left. Default false: the tape can be asked again.
   */
  readonly release?: boolean;
}

/**
 * @internal Checks the operands of a step outside the tape's class. @throws ERR_TYPE · ERR_DISPOSED
 * if the tape records no more
 */
export function checkStep(op: string, tape: unknown, values: Readonly<Record<string, unknown>>) {
  if (!(tape instanceof GradientTape)) throw wrongType(op, 't', 'a Tape', tape);
  checkLive(op, tape);
  for (const [name, value] of Object.entries(values)) checkValue(op, name, value);
}

/** Nobody could use or free what a disposed tape would record. @throws ERR_DISPOSED */
function checkLive(op: string, { recording, disposed }: GradientTape): void {
  if (recording && disposed) fail('ERR_DISPOSED', op, 't', 'a live tape', 'a disposed one');
}

function checkValue(op: string, name: string, value: unknown): void {
  if (value instanceof Value) return;
  throw wrongType(op, name, 'a Value of the tape (t.own makes one from a tensor)', value);
}

/**
 * Records what a forward pass computes, and derives the gradients by the chain rule: an adapter
 * only defines its forward formula. The tape holds the tensors that the backward functions read
 * until it is disposed.
 * @example
 * const tape = new Tape(); // with the ops of this library
 * const a = tape.variable(tensor);
 * const y = tape.multiply(a, a);
 * const [da] = tape.gradients('square', y, dy, [a]); // the first is named in errors
 */
export class GradientTape implements Disposable {
  /** Tensors that the backward pass reads. {@link scope} finds them here and frees the rest. */
  readonly kept: Kept[] = [];
  /** Are steps recorded? */
  readonly recording: boolean;
  readonly #steps: Step[] = [];
  /** Tensors that the tape must not free. */
  readonly #borrowed = new Set<Kept>();
  readonly #held = new Set<Kept>();
  readonly #variables = new Map<Tensor, Value[]>();
  #disposed = false;

  /**
   * @param recording `false` for a forward pass alone: the tape keeps nothing
   * @throws ERR_TYPE
   */
  constructor(recording = true) {
    if (typeof recording !== 'boolean') {
      throw wrongType('GradientTape', 'recording', 'a boolean', recording);
    }
    this.recording = recording;
    track(this);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** A tensor of the caller, of which a gradient may be wanted. */
  variable(tensor: Tensor): Value {
    this.#borrowed.add(tensor);
    const value = new Value(tensor, this.recording);
    const known = this.#variables.get(tensor);
    if (known === undefined) this.#variables.set(tensor, [value]);
    else known.push(value);
    return value;
  }

  /** The values that {@link GradientTape.variable} made, by tensor: the gradient of a tensor is the sum of theirs. */
  get variables(): ReadonlyMap<Tensor, readonly Value[]> {
    return this.#variables;
  }

  /** Is it freed with the tape? */
  holds(tensor: Tensor): boolean {
    return this.#held.has(tensor);
  }

  /** A tensor of the caller without a gradient. It must live as long as the tape. */
  constant(tensor: Tensor): Value {
    this.#borrowed.add(tensor);
    return new Value(tensor, false);
  }

  /** A tensor without a gradient that was made for this pass. It is freed with the tape. */
  own(tensor: Tensor): Value {
    return new Value(tensor, false);
  }

  /**
   * A step that the library does not have: `output`, computed from `inputs`, and the function that
   * turns its gradient into theirs.
   * @param keeps the tensors that `backward` reads; they live until then
   * @throws ERR_TYPE · ERR_DISPOSED
   * @example
   * const y = t.record(multiplyAdd({ a: x.tensor, alpha: 2 }), [x], [], (dy, pass) =>
   *   pass.give(x, multiplyAdd({ a: dy, alpha: 2 })));
   */
  record(
    output: Tensor,
    inputs: readonly Value[],
    keeps: readonly Kept[],
    backward: BackwardFunction,
  ): Value {
    const op = 'Tape.record';
    checkLive(op, this);
    if (!Array.isArray(inputs)) throw wrongType(op, 'inputs', 'an array of values', inputs);
    for (const [i, input] of inputs.entries()) checkValue(op, `inputs[${i}]`, input);
    if (!Array.isArray(keeps)) throw wrongType(op, 'keeps', 'an array of tensors', keeps);
    if (typeof backward !== 'function') throw wrongType(op, 'backward', 'a function', backward);
    const differentiable = this.recording && inputs.some((input) => input.differentiable);
    const value = new Value(output, differentiable);
    if (differentiable) {
      const own = keeps.filter((each) => !this.#borrowed.has(each));
      // A step frees what no step before it reads: the backward pass runs from the last to the first.
      const first = own.filter((each) => !this.#held.has(each));
      for (const each of first) this.#held.add(each);
      this.kept.push(...first);
      this.#steps.push({ inputs, output: value, backward, keeps: first });
    }
    return value;
  }

  /**
   * The gradients of `Σ y ⊙ dy` for the wanted values, in their order; `undefined` if y does not depend on a
   * value. Only the steps between a wanted value and y run. Each gradient has its own memory, which it does
   * not share with dy or another gradient.
   * @param op the call that errors should name
   * @param dy a tensor of y's shape
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED; whatever the steps throw
   */
  gradients(
    op: string,
    y: Value,
    dy: Tensor,
    wanted: readonly Value[],
    options: GradientsOptions = {},
  ): readonly (Tensor | undefined)[] {
    if (typeof op !== 'string') throw wrongType('Tape.gradients', 'op', 'a string', op);
    if (this.#disposed) fail('ERR_DISPOSED', op, 'saved', 'live saved state', 'a disposed one');
    checkValue(op, 'y', y);
    if (!Array.isArray(wanted)) throw wrongType(op, 'wanted', 'an array of values', wanted);
    for (const [i, value] of wanted.entries()) checkValue(op, `wanted[${i}]`, value);
    checkTensor(op, 'dy', dy);
    checkShape(op, 'dy', dy, y.shape);
    checkSameDevice(op, 'dy', dy, y.tensor);
    const active = new Set(wanted);
    for (const { inputs, output } of this.#steps) {
      if (inputs.some((input) => active.has(input))) active.add(output);
    }
    const release = readOptions('Tape.gradients', options, { release: true }).release === true;
    const found = scope(() => {
      const pass = new Pass(active, [...wanted, y]);
      pass.give(y, dy);
      for (const step of [...this.#steps].reverse()) {
        this.#runBack(step, pass, dy);
        if (release) for (const each of step.keeps) each.dispose();
      }
      const others = [dy, ...this.#borrowed, ...this.kept].filter(
        (each): each is Tensor => Tensor.is(each) && !each.disposed,
      );
      return wanted.map((value) => {
        const gradient = pass.of(value);
        if (gradient === undefined) return undefined;
        // A step may pass its gradient on unchanged. It is then dy or another gradient, and writing to one
        // would change both.
        const shared = others.some((each) => Tensor.sharesMemory(each, gradient));
        const own = shared ? gradient.to({}) : gradient;
        others.push(own);
        return own;
      });
    });
    if (release) this.dispose();
    return found;
  }

  /** Runs one step of the backward pass, and frees what it alone needed. */
  #runBack({ output, backward }: Step, pass: Pass, dy: Tensor): void {
    if (!pass.wants(output)) return;
    const before = pass.held();
    scope(() => {
      const gradient = pass.of(output);
      if (gradient !== undefined) backward(gradient, pass);
      pass.finish(output);
      return pass.held();
    });
    const after = new Set(pass.held());
    for (const tensor of before) {
      const others = tensor === dy || this.#borrowed.has(tensor) || this.#held.has(tensor);
      if (!others && !after.has(tensor)) tensor.dispose();
    }
  }

  /** Frees what the tape keeps. A second call does nothing. */
  dispose(): void {
    this.#disposed = true;
    for (const each of this.kept) each.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(GradientTape, 'Tape');

/** The gradients that have been summed so far. */
class Pass implements BackwardPass {
  readonly #active: ReadonlySet<Value>;
  /** Of these the gradients stay until the end. */
  readonly #stay: ReadonlySet<Value>;
  readonly #sums = new Map<Value, Tensor>();
  readonly #bases = new Map<Value, { dy: Tensor; w: BaseWeight }[]>();

  constructor(active: ReadonlySet<Value>, stay: readonly Value[]) {
    this.#active = active;
    this.#stay = new Set(stay);
  }

  wants(input: Value): boolean {
    return this.#active.has(input);
  }

  give(input: Value, gradient: Tensor): void {
    if (!this.wants(input)) return;
    checkShape('backward', 'the gradient', gradient, input.shape);
    const sum = this.#sums.get(input);
    const { dtype } = input.tensor;
    if (sum !== undefined) {
      this.#sums.set(input, multiplyAdd({ a: sum, c: gradient, dtype }));
    } else {
      this.#sums.set(input, gradient.dtype === dtype ? gradient : gradient.to({ dtype }));
    }
  }

  giveBase(input: Value, dy: Tensor, w: BaseWeight): void {
    if (!this.wants(input)) return;
    const waiting = this.#bases.get(input);
    if (waiting === undefined) this.#bases.set(input, [{ dy, w }]);
    else waiting.push({ dy, w });
  }

  take(input: Value): Tensor | undefined {
    const sum = this.#sums.get(input);
    this.#sums.delete(input);
    return sum;
  }

  takeBase(input: Value): { dy: Tensor; w: BaseWeight } | undefined {
    return this.#bases.get(input)?.pop();
  }

  /** The whole gradient of a value. */
  of(value: Value): Tensor | undefined {
    for (let base = this.takeBase(value); base !== undefined; base = this.takeBase(value)) {
      this.give(value, matmulInputGrad(base.dy, base.w));
    }
    return this.#sums.get(value);
  }

  /** No further step reads the gradient of this output, unless it is wanted. */
  finish(output: Value): void {
    if (!this.#stay.has(output)) this.#sums.delete(output);
  }

  /** What later steps read. */
  held(): Tensor[] {
    const waiting = [...this.#bases.values()].flat().map(({ dy }) => dy);
    return [...this.#sums.values(), ...waiting];
  }
}
