/** A training step: passes over a tape, the sum of their gradients, clipping, an optimiser. */

import { ModelTape } from '../autograd/model/model-tape.js';
import { TreeSum } from '../collective/tree-sum.js';
import type { DeviceSeed } from '../core/device-seed.js';
import { fail, markClass, wrongType } from '../core/errors.js';
import { full } from '../core/full.js';
import { hash32 } from '../core/random.js';
import { scope, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkFinite, checkInteger, ownFields, readOptions } from '../core/validate.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { globalNorm } from '../ops/optimizer-step.js';
import type { AnyOptimizer, TrainedParameter } from '../optim/definition/definition.js';
import { optimizerSettings } from '../optim/definition/settings.js';
import { adamw } from '../optim/elementwise/adamw.js';
import { OptimizerRun, type StoredState } from '../optim/run/optimizer-run.js';
import { CapturedTraining, type CaptureStepOptions } from './captured-training.js';
import { checkPrivacy, noisyMean, type PrivateSteps, runPrivatePass } from './private-step.js';
import type { TrainPass } from './train-pass.js';
import {
  freeStep,
  type GradientEdits,
  readBoth,
  type StepInputs,
  type StepNumbers,
  type TrainStep,
} from './train-step.js';

/** How a {@link Trainer} works. */
export interface TrainerOptions {
  /** Default {@link adamw}. */
  readonly optimizer?: AnyOptimizer;
  /** Settings of the optimiser that differ from its defaults. */
  readonly settings?: Readonly<Record<string, unknown>>;
  /** Learning rate of a step that names none; default 1e-3. */
  readonly lr?: number;
  /** Decoupled; default 0. */
  readonly weightDecay?: number;
  /** Largest global norm of the gradients, with `privacy` of each example's; default none. */
  readonly clip?: number;
  /** Names the random numbers of the run, those of dropout first; default 1. With `privacy`, keep it to yourself. */
  readonly seed?: number;
  /** Default none: steps are not private. */
  readonly privacy?: PrivateSteps;
}

/** A parameter, and the tensors over its memory. */
interface Entry {
  readonly parameter: TrainedParameter;
  readonly views: readonly Tensor[];
}

/**
 * Trains tensors on their device. A step queues its ops and returns; nothing is copied to the host until its loss is
 * read. A step whose loss or gradient is not finite changes nothing but the count.
 * @example
 * using trainer = new Trainer(parametersOf(adapters), { lr: 1e-3, clip: 1 });
 * const step = trainer.step((tape) => loss(decoder.forward(tape, batch, { adapters })));
 * console.log((await step.read()).loss);
 */
export class Trainer implements Disposable {
  readonly #entries: readonly Entry[];
  readonly #optimizer: OptimizerRun;
  readonly #lr: number;
  readonly #clip: number | undefined;
  readonly #privacy: PrivateSteps | undefined;
  readonly #seed: number;
  #steps = 0;
  /** The steps that were finished when the optimiser was started anew. */
  #origin = 0;
  /** @internal */
  edits: GradientEdits | undefined;
  /** The trained values, while the parameters hold those that are evaluated. */
  #trained: readonly Float32Array[] | undefined;

  /**
   * @param parameters at least one, on one device, with distinct names
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  constructor(parameters: readonly TrainedParameter[], options?: TrainerOptions) {
    const op = 'Trainer';
    const given = readOptions(op, options, {
      optimizer: true,
      settings: true,
      lr: true,
      weightDecay: true,
      clip: true,
      seed: true,
      privacy: true,
    });
    const { optimizer = adamw, weightDecay = 0, lr = 1e-3, clip, seed = 1 } = given;
    checkParameters(op, parameters);
    const settings = optimizerSettings(op, optimizer, given.settings);
    this.#lr = notNegative(op, 'lr', lr);
    this.#clip = clip === undefined ? undefined : checkFinite(op, 'clip', clip);
    if (clip !== undefined && clip <= 0) fail('ERR_VALUE', op, 'clip', 'above 0', String(clip));
    this.#privacy = checkPrivacy(op, given.privacy, clip);
    this.#seed = checkInteger(op, 'seed', seed, 0, Number.MAX_SAFE_INTEGER);
    const decay = notNegative(op, 'weightDecay', weightDecay);
    this.#optimizer = new OptimizerRun(op, optimizer, settings, parameters, decay);
    this.#entries = parameters.map((parameter) => ({
      parameter,
      views: [parameter.tensor, ...(parameter.views ?? [])],
    }));
    track(this);
  }

  /** Number of finished steps. */
  get steps(): number {
    return this.#steps;
  }

  /** What is trained. */
  get parameters(): readonly TrainedParameter[] {
    return this.#entries.map(({ parameter }) => parameter);
  }

  /** The optimiser. */
  get optimizer(): AnyOptimizer {
    return this.#optimizer.optimizer;
  }

  /** The optimiser's tensors of each parameter, by its name. */
  get state(): ReadonlyMap<string, Readonly<Record<string, Tensor>>> {
    return this.#optimizer.tensors;
  }

  /** @internal What a checkpoint has: the trained values as `values/NAME`, and the states as `m/NAME`. */
  get stored(): readonly StoredState[] {
    return [
      ...this.#entries.map(({ parameter: { name, tensor } }, i) => ({
        name: `values/${name}`,
        shape: tensor.shape,
        notNegative: false,
        dtype: 'F32' as const,
        read: () => this.#trained?.[i] ?? tensor.readSync(),
        write: (values: Float32Array | Uint8Array) => tensor.write(values as Float32Array),
      })),
      ...this.#optimizer.stored,
    ];
  }

  /**
   * Writes into the parameters what is evaluated and saved, until {@link Trainer.showTrained}. Only schedule-free optimisers
   * train other values.
   */
  showEvaluated(): void {
    if (this.#trained !== undefined) return;
    const shown = this.#optimizer.evaluated(this.#steps - this.#origin);
    if (shown === undefined) return;
    this.#trained = this.#entries.map(({ parameter }) => parameter.tensor.readSync());
    for (const [i, { parameter }] of this.#entries.entries()) {
      parameter.tensor.write(shown[i] as Float32Array);
    }
  }

  /** Writes the trained values back, with their bits. */
  showTrained(): void {
    const trained = this.#trained;
    this.#trained = undefined;
    if (trained === undefined) return;
    for (const [i, { parameter }] of this.#entries.entries()) {
      parameter.tensor.write(trained[i] as Float32Array);
    }
  }

  /**
   * Goes on after this number of steps; the caller has written the parameters and {@link Trainer.state}.
   * @throws ERR_VALUE
   */
  resumeAt(steps: number): void {
    this.#steps = checkInteger('Trainer.resumeAt', 'steps', steps, 0, Number.MAX_SAFE_INTEGER);
  }

  /**
   * Starts the optimiser anew: its states become 0, and it counts its steps from 1 again.
   * @param steps counts from here on instead
   * @throws ERR_DISPOSED
   */
  restartOptimizer(steps = 0): void {
    this.#optimizer.restart();
    this.#origin = this.#steps - steps;
  }

  /** @internal The number of finished steps when the optimiser was last started; a checkpoint has it. */
  get optimizerOrigin(): number {
    return this.#origin;
  }

  set optimizerOrigin(steps: number) {
    this.#origin = steps;
  }

  /**
   * Queues one update. Several passes add up: give each the share of the loss that it stands for. A private step may have
   * none, and its loss is the mean over its examples.
   * @param passes one, or several for gradients of more rows than fit at once
   * @throws ERR_TYPE, ERR_VALUE; what a pass throws, and then nothing was updated
   */
  step(passes: TrainPass | readonly TrainPass[], options?: { readonly lr?: number }): TrainStep {
    const op = 'Trainer.step';
    const lr = notNegative(op, 'lr', readOptions(op, options, { lr: true }).lr ?? this.#lr);
    this.showTrained();
    const made = this.#update(op, passes, lr, undefined);
    this.#steps++;
    const read = async () => {
      const both = await readBoth(made);
      freeStep(made);
      return both;
    };
    return { step: this.#steps, lr, ...made, read };
  }

  /**
   * A step that is captured as a graph on a CUDA device and replayed, with the bits of {@link Trainer.step}; elsewhere
   * each step runs the passes. Both kinds of step may alternate.
   *
   * The passes run in the first steps, and once more for the capture, but not for a replay. What changes from step to
   * step must lie in memory that they refer to: write to {@link Indices}, to tensors and to a {@link DeviceSeed} of your
   * own before a step. Dropout draws other numbers in each step by itself. Shapes are those of the capture; for another
   * shape, capture another step, or call {@link Trainer.step}.
   * @throws ERR_TYPE, ERR_VALUE; ERR_UNSUPPORTED if the optimiser cannot be captured
   * @example
   * const captured = trainer.capture((tape) => loss(decoder.forward(tape, { ids, B, T }), targets));
   * ids.write(next.ids);
   * targets.write(next.targets);
   * const { loss } = await captured.step({ lr }).read();
   */
  capture(
    passes: TrainPass | readonly TrainPass[],
    options?: CaptureStepOptions,
  ): CapturedTraining {
    const op = 'Trainer.capture';
    const { optimizer, capturable } = this.#optimizer.optimizer;
    if (capturable !== true) {
      fail('ERR_UNSUPPORTED', op, 'the optimiser', 'capturable', `"${optimizer}"`);
    }
    if (this.#privacy !== undefined) {
      fail('ERR_UNSUPPORTED', op, 'privacy', 'none (its steps differ in examples)', 'given');
    }
    const count = Array.isArray(passes) ? passes.length : 1;
    return new CapturedTraining(
      {
        device: (this.#entries[0] as Entry).parameter.tensor.device,
        now: (lr) => ({
          lr: lr === undefined ? this.#lr : notNegative('CapturedTraining.step', 'lr', lr),
          steps: this.#steps - this.#origin,
          seeds: Array.from({ length: count }, (_, pass) => this.#seedOf(pass)),
        }),
        run: (lr) => this.step(passes, { lr }),
        record: (inputs) => this.#update(op, passes, 0, inputs),
        advance: () => ++this.#steps,
      },
      options,
    );
  }

  #seedOf(pass: number): number {
    return hash32(this.#seed, 'pass', this.#steps, pass);
  }

  /** Queues the passes and the update; as a part of a captured step it reads its numbers from `inputs`. */
  #update(
    op: string,
    passes: TrainPass | readonly TrainPass[],
    lr: number,
    inputs: StepInputs | undefined,
  ): StepNumbers {
    return scope(() => {
      const made = this.#backward(op, passes, inputs, this.edits);
      const { loss } = made;
      const gradients = this.edits?.edit(made.gradients) ?? made.gradients;
      const gradientNorm = normOf(
        gradients.filter((gradient) => gradient !== undefined),
        loss,
      );
      this.#optimizer.step({
        gradients,
        norm: gradientNorm,
        maxNorm: this.#privacy === undefined ? this.#clip : undefined,
        lr,
        step: this.#steps - this.#origin + 1,
        captured: inputs,
      });
      return { loss, gradientNorm };
    });
  }

  /**
   * The passes of the next step without an update, for measuring and for gradients of one's own.
   * @returns the loss [1], and the gradient of each parameter, undefined where the loss does not depend on it
   */
  rehearse(passes: TrainPass | readonly TrainPass[]): {
    readonly loss: Tensor;
    readonly gradients: readonly (Tensor | undefined)[];
  } {
    return scope(() => this.#backward('Trainer.rehearse', passes));
  }

  #backward(
    op: string,
    passes: TrainPass | readonly TrainPass[],
    inputs?: StepInputs,
    edits?: GradientEdits,
  ) {
    const all = Array.isArray(passes) ? passes : [passes];
    if (this.#privacy !== undefined) return this.#privately(op, all, this.#privacy);
    if (all.length === 0) fail('ERR_VALUE', op, 'passes', 'at least one', 'none');
    // The tree depends on the number of passes only, so the bits do too.
    const sum = new TreeSum<readonly (Tensor | undefined)[]>((a, b) =>
      a.map((part, i) => addUp([part, b[i]])),
    );
    const fixed = this.#entries.map(
      (_, i) => this.#optimizer.isFrozen(i) || edits?.trains(i) === false,
    );
    for (const [i, pass] of all.entries()) {
      if (typeof pass !== 'function') throw wrongType(op, 'passes', 'functions', pass);
      sum.add(scope(() => this.#pass(op, pass, i, fixed, inputs?.seeds[i])));
    }
    const [loss, ...gradients] = sum.total() as readonly [Tensor, ...(Tensor | undefined)[]];
    return { loss, gradients };
  }

  /** A private step's gradients, and the mean loss of its examples, of which there may be none. */
  #privately(op: string, all: readonly TrainPass[], privacy: PrivateSteps) {
    const clip = this.#clip as number;
    const tensors = this.#entries.map(({ parameter }) => parameter.tensor);
    const trained = tensors.filter((_, i) => !this.#optimizer.isFrozen(i));
    const sum = new TreeSum<readonly (Tensor | undefined)[]>((a, b) =>
      a.map((part, i) => addUp([part, b[i]])),
    );
    let taken = 0;
    for (const [i, pass] of all.entries()) {
      if (typeof pass !== 'function') throw wrongType(op, 'passes', 'functions', pass);
      const place = { step: this.#steps, pass: i, seed: this.#seedOf(i) };
      const made = scope(() => runPrivatePass(op, pass, place, { trained, all: tensors, clip }));
      taken += made.examples;
      sum.add([made.loss, ...made.sums]);
    }
    const device = (tensors[0] as Tensor).device;
    const nothing = Tensor.zeros([1], { device });
    const [loss = nothing, ...sums] = all.length === 0 ? [] : sum.total();
    const gradients = this.#entries.map(({ parameter: { tensor, name } }, i) => {
      if (this.#optimizer.isFrozen(i)) return undefined;
      const call = { clip, seed: this.#seed, step: this.#steps, name };
      return noisyMean(sums[i], tensor, privacy, call);
    });
    return { loss: multiplyAdd({ a: loss, alpha: 1 / Math.max(taken, 1) }), gradients };
  }

  /** The loss, then the gradients. */
  #pass(
    op: string,
    pass: TrainPass,
    index: number,
    fixed: readonly boolean[],
    drawn: DeviceSeed | undefined,
  ): readonly (Tensor | undefined)[] {
    const seed = this.#seedOf(index);
    const tape = new ModelTape({ dropout: { seed: drawn ?? seed } });
    const made = pass(tape, { step: this.#steps, pass: index, seed });
    const { loss, added = [] } = 'loss' in made ? made : { loss: made };
    const { size, device } = loss.tensor;
    if (size !== 1)
      fail('ERR_SHAPE', op, 'the loss of a pass', '[1]', `[${loss.shape.join(', ')}]`);
    const values = this.#entries.map(({ views }, i) =>
      fixed[i] === true ? [] : views.flatMap((view) => tape.variables.get(view) ?? []),
    );
    const one = full(loss.shape, 1, { device });
    const found = [...tape.gradients(op, loss, one, values.flat(), { release: true })];
    const gradients = values.map((own, i) => {
      const { shape } = (this.#entries[i] as Entry).parameter.tensor;
      return addUp(found.splice(0, own.length).map((each) => each?.reshape(shape)));
    });
    const at = new Map(this.#entries.flatMap(({ views }, i) => views.map((view) => [view, i])));
    for (const [tensor, more] of added) {
      const i = at.get(tensor);
      if (i === undefined) fail('ERR_VALUE', op, 'added', 'by trained tensors', 'another tensor');
      if (fixed[i] !== true) gradients[i] = addUp([gradients[i], more]);
    }
    return [loss.tensor.reshape([1]), ...gradients];
  }

  /** Frees the optimiser's state; the parameters are the caller's. Twice is a no-op. */
  dispose(): void {
    this.#optimizer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(Trainer, 'Trainer');

/** The sum of the parts that exist, which are freed if there are several. */
function addUp(parts: readonly (Tensor | undefined)[]): Tensor | undefined {
  return parts.reduce((a, b) => {
    if (a === undefined || b === undefined) return a ?? b;
    const sum = multiplyAdd({ a, c: b });
    a.dispose();
    b.dispose();
    return sum;
  }, undefined);
}

/** The norm of all gradients; not finite where the loss is not. */
function normOf(gradients: readonly Tensor[], loss: Tensor): Tensor {
  const nothing = multiplyAdd({ a: loss, alpha: 0 });
  return gradients.length === 0 ? nothing : multiplyAdd({ a: nothing, c: globalNorm(gradients) });
}

function notNegative(op: string, name: string, value: unknown): number {
  const number = checkFinite(op, name, value as number);
  if (number < 0) fail('ERR_VALUE', op, name, 'at least 0', String(number));
  return number;
}

function checkParameters(op: string, parameters: unknown): void {
  if (!Array.isArray(parameters)) {
    throw wrongType(op, 'parameters', 'an array of { name, role, tensor }', parameters);
  }
  const [first] = parameters as readonly TrainedParameter[];
  if (first === undefined) fail('ERR_VALUE', op, 'parameters', 'at least one', 'none');
  const names = new Set<string>();
  for (const [i, parameter] of (parameters as readonly TrainedParameter[]).entries()) {
    const { name, tensor } = ownFields<TrainedParameter>(op, parameter);
    if (typeof name !== 'string') throw wrongType(op, `parameters[${i}].name`, 'a string', name);
    if (names.has(name)) {
      fail('ERR_VALUE', op, 'parameters', 'of distinct names', `"${name}" twice`);
    }
    names.add(name);
    if (!Tensor.is(tensor)) throw wrongType(op, `parameters[${i}].tensor`, 'a Tensor', tensor);
    if (tensor.device !== first.tensor.device) {
      fail('ERR_DEVICE', op, name, first.tensor.device, tensor.device);
    }
  }
}
