/**
 * Fine-tuning of a decoder on packed text: a frozen base, adapters on its linear layers.
 *
 * Everything random depends only on the seed and the step, so a run that resumes at a step gives the
 * same bits as one that never stopped.
 */

import { ModelTape } from '../autograd/model/model-tape.js';
import type { DType } from '../core/dtype.js';
import { fail, LowrankError } from '../core/errors.js';
import { hash32 } from '../core/random.js';
import { outsideScopes, scope } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import type { Decoder } from '../model/decoder.js';
import type { LinearSource } from '../model/linear-source.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { Indices } from '../ops/model/indices.js';
import type { AnyOptimizer } from '../optim/definition/definition.js';
import type { StoredState } from '../optim/run/optimizer-run.js';
import type { ChosenRule } from '../rules/definition/definition.js';
import type { RulePass } from '../rules/definition/run.js';
import { RuleEngine } from '../rules/run/rule-engine.js';
import type { SequenceSet, TextData } from '../text/text-data.js';
import type { AdapterSet } from './adapter-set.js';
import type { CapturedTraining } from './captured-training.js';
import { checkTrainOptions } from './check-options.js';
import {
  lossOf,
  type ObservedBatch,
  observeInputs,
  squaredDistance,
  weightGradients,
} from './observe.js';
import { learningRate } from './schedule.js';
import { SequenceOrder } from './sequence-order.js';
import type { TrainStep } from './train-step.js';
import { type PassPlace, Trainer, type TrainPass } from './trainer.js';

/** Settings of a training run. */
export interface TrainOptions {
  readonly steps: number;
  /** Sequences in one forward and backward pass. */
  readonly batch: number;
  /** Passes whose gradients are averaged before an update. */
  readonly accumulate: number;
  /** Peak learning rate. */
  readonly lr: number;
  readonly warmup: number;
  readonly weightDecay: number;
  /** Maximum global norm of the gradient. */
  readonly clip: number;
  readonly seed: number;
  /** Default `adamw`. */
  readonly optimizer?: AnyOptimizer;
  /** Settings of the optimiser that differ from its defaults. */
  readonly optimizerSettings?: Readonly<Record<string, unknown>>;
  /** Rules of training; their hooks are called in this order. */
  readonly rules?: readonly ChosenRule[];
  /** Of the activations. */
  readonly dtype: DType;
  /** Do blocks run again in the backward pass? */
  readonly recompute: boolean;
  /**
   * Are steps on a CUDA device captured as a graph and replayed? Default true. The bits are the same; what cannot be
   * captured runs without ({@link ModelTrainer.notCaptured}).
   */
  readonly capture?: boolean;
}

/** The result of one step. */
export interface StepResult {
  /** Number of finished steps, including this one. */
  readonly step: number;
  /** Mean training loss in nats per token before the update, without the method's penalty. */
  readonly loss: number;
  readonly gradientNorm: number;
  readonly lr: number;
  readonly tokens: number;
}

/** Ids and targets of a pass, [batch · T] each. */
export interface Batch {
  readonly ids: Int32Array;
  readonly targets: Int32Array;
}

/** A step as a graph, and where it reads the batches of its passes. */
interface CapturedSteps {
  readonly batches: readonly { readonly ids: Indices; readonly targets: Indices }[];
  readonly training: CapturedTraining;
}

/**
 * Trains the adapters of a decoder on sequences of tokens, with a schedule of the learning rate and rules.
 * @example
 * using trainer = new ModelTrainer(decoder, set, { train, heldOut, tokens }, options, new LinearSource(model, format, 'cpu'));
 * while (trainer.step < options.steps) console.log((await trainer.train()).loss);
 * trainer.finish();
 * await writeTrainedAdapter('./adapter', trainer);
 */
export class ModelTrainer implements Disposable {
  readonly trainer: Trainer;
  /** The rules of the run, if it has any. */
  readonly rules: RuleEngine | undefined;
  #captured: CapturedSteps | undefined;
  #notCaptured: string | undefined;
  readonly #order: SequenceOrder;

  /**
   * @param source where the base can be read from, for rules that merge into it
   * @throws ERR_TYPE, ERR_VALUE, ERR_DTYPE for options · ERR_UNSUPPORTED for rules that do not fit each other or the run
   */
  constructor(
    readonly decoder: Decoder,
    readonly adapters: AdapterSet,
    readonly data: TextData,
    readonly options: TrainOptions,
    source?: LinearSource,
  ) {
    checkTrainOptions('ModelTrainer', options);
    const { weightDecay, clip, seed, optimizer, optimizerSettings, rules = [] } = options;
    this.#order = new SequenceOrder(data.train.count, options);
    this.trainer = new Trainer(adapters.parameters, {
      weightDecay,
      clip,
      seed,
      ...(optimizer === undefined ? {} : { optimizer }),
      ...(optimizerSettings === undefined ? {} : { settings: optimizerSettings }),
    });
    const { method, definition } = adapters.config.method;
    if (options.capture === false) this.#notCaptured = 'capture is false';
    else if (!decoder.weights.device.startsWith('cuda')) {
      this.#notCaptured = `${decoder.weights.device} is no CUDA device`;
    } else if (definition.indexesFollowValues === true) {
      this.#notCaptured = `the host draws tables of ${method} from its values in each step`;
    } else if (this.trainer.optimizer.capturable !== true) {
      this.#notCaptured = `the optimizer ${this.trainer.optimizer.optimizer} runs on the host`;
    }
    if (rules.length === 0) return;
    const { steps, warmup } = options;
    const host = {
      ...{ decoder, adapters, trainer: this.trainer, source, sizes: { steps, warmup }, seed, clip },
      rehearse: (pass: RulePass, skip: ReadonlySet<string>) => this.#rehearse(pass, skip),
      lossOf: (pass: RulePass) => lossOf(decoder, this.#observed(pass)),
      observeInputs: (pass: RulePass, input: (module: string, x: Float32Array) => void) =>
        observeInputs(decoder, this.#observed(pass), input),
      weightGradients: (pass: RulePass | undefined) =>
        weightGradients(decoder, adapters, this.#observed(pass), hash32(seed, 'weight', this.step)),
      baseChanged: () => this.#freeCaptured(),
    };
    this.rules = new RuleEngine(host, rules);
    this.trainer.edits = this.rules;
    this.#notCaptured ??= this.rules.notCaptured;
  }

  /** Why the steps are not replays of a graph; undefined if they are, or will be after the first ones. */
  get notCaptured(): string | undefined {
    return this.#notCaptured;
  }

  /** Number of finished steps. */
  get step(): number {
    return this.trainer.steps;
  }

  /**
   * One update: forward and backward passes over the step's batches, clipping, the optimiser.
   * @throws LowrankError `ERR_NON_FINITE` if the loss or its gradient is not finite; then no value was updated
   */
  async train(): Promise<StepResult> {
    const { steps, accumulate, batch, lr, warmup } = this.options;
    this.adapters.refresh();
    const constant = this.trainer.optimizer.schedule === 'constant';
    const schedule = (at: number, warm = warmup, length = steps) =>
      learningRate(at, lr, warm, length, constant);
    const rate = this.rules?.rate(schedule) ?? schedule(this.step);
    this.rules?.before();
    const queued = this.#queue(rate);
    const { loss, gradientNorm } = await queued.read();
    const number = Number.isFinite(loss) ? gradientNorm : loss;
    if (!Number.isFinite(number)) {
      const what = number === loss ? 'loss' : "gradient's norm";
      const text =
        `finetune: the ${what} must be finite, got ${number} at step ${this.step}. ` +
        'Lower the learning rate (--lr)';
      throw new LowrankError('ERR_NON_FINITE', text, { op: 'finetune' });
    }
    this.rules?.after(gradientNorm);
    const tokens = accumulate * batch * this.data.train.T;
    return { step: this.step, loss, gradientNorm, lr: rate, tokens };
  }

  #queue(lr: number): TrainStep {
    if (this.#notCaptured !== undefined) return this.trainer.step(this.passes(), { lr });
    const { batches, training } = this.#capturedSteps();
    for (const [pass, { ids, targets }] of this.nextBatches().entries()) {
      batches[pass]?.ids.write(ids);
      batches[pass]?.targets.write(targets);
    }
    try {
      return training.step({ lr });
    } catch (error) {
      if (!(error instanceof LowrankError) || error.code !== 'ERR_UNSUPPORTED') throw error;
      this.#notCaptured = error.message;
      this.#freeCaptured();
      return this.trainer.step(this.passes(), { lr });
    }
  }

  #capturedSteps(): CapturedSteps {
    this.#captured ??= outsideScopes(() => {
      const { device } = this.decoder.weights;
      const limit = this.decoder.config.vocabSize;
      const batches = this.nextBatches().map(({ ids, targets }) => ({
        ids: Indices.from(ids, { limit, device }),
        targets: Indices.from(targets, { limit, holes: true, device }),
      }));
      const passes = batches.map(
        (batch): TrainPass =>
          (tape, place) =>
            this.#pass(tape, batch, place),
      );
      return { batches, training: this.trainer.capture(passes) };
    });
    return this.#captured;
  }

  #freeCaptured(): void {
    const { batches = [], training } = this.#captured ?? {};
    this.#captured = undefined;
    training?.dispose();
    for (const { ids, targets } of batches) {
      ids.dispose();
      targets.dispose();
    }
  }

  /**
   * Runs the next step without an update, for measuring.
   * @returns its loss
   */
  rehearse(): number {
    return scope(() => {
      this.adapters.refresh();
      return this.trainer.rehearse(this.passes()).loss.readSync()[0] as number;
    });
  }

  /** Gradients of a step on a part of the sequences. */
  #rehearse(part: RulePass, skip: ReadonlySet<string>) {
    return scope(() => {
      this.adapters.refresh();
      const { gradients } = this.trainer.rehearse(this.passes(part, skip));
      return gradients.map((gradient) => gradient?.readSync());
    });
  }

  /** The batches of the next step, or of one on a part of the sequences, for a further pass. */
  #observed(part: RulePass | undefined): readonly ObservedBatch[] {
    const { accumulate, dtype } = this.options;
    const { byModule, experts } = this.adapters;
    const call = { adapters: byModule, experts, dtype };
    return this.nextBatches(part).map(({ ids, targets }) => {
      const scale = 1 / (accumulate * targets.length);
      return { ids, targets, T: this.data.train.T, call, scale };
    });
  }

  /** Called once after the last step, before the last evaluation. */
  finish(): void {
    this.rules?.finish();
  }

  /** The passes of the next step, or of one on a part of the sequences. */
  passes(part?: RulePass, skip?: ReadonlySet<string>): readonly TrainPass[] {
    return this.nextBatches(part).map(
      (batch): TrainPass =>
        (tape, place) =>
          this.#pass(tape, batch, place, skip ?? this.rules?.skips(place.pass)),
    );
  }

  #pass(
    tape: ModelTape,
    { ids, targets }: Batch | CapturedSteps['batches'][number],
    { seed }: PassPlace,
    skip?: ReadonlySet<string>,
  ) {
    const { batch: B, accumulate, dtype, recompute } = this.options;
    const { byModule, experts } = this.adapters;
    const skipped = skip === undefined ? {} : { skip };
    const call = { adapters: byModule, experts, dtype, recompute, seed, ...skipped };
    const tokens = { ids, B, T: this.data.train.T };
    // Before the tape reads the parameters.
    const held = (this.rules?.anchors() ?? []).map(({ weight, during }) => {
      const still = new ModelTape({ recording: false });
      const plain = { ...call, recompute: false, skip: new Set<string>() };
      return {
        weight,
        to: during(() => this.decoder.forward(still, tokens, plain).features.tensor),
      };
    });
    const { features } = this.decoder.forward(tape, tokens, call);
    const scale = 1 / (accumulate * targets.length);
    const { loss: entropy } = this.decoder.loss(tape, features, targets, { ...call, scale });
    const loss = held.reduce(
      (sum, { weight, to }) =>
        tape.add(sum, squaredDistance(tape, features, to), 1, weight / (accumulate * to.size)),
      entropy,
    );
    return { loss, added: this.#penalties(seed) };
  }

  /**
   * The gradient of the method's penalty, as the mean over layers and passes.
   * @throws LowrankError `ERR_NON_FINITE`
   */
  #penalties(seed: number): (readonly [Tensor, Tensor])[] {
    const { layers, config } = this.adapters;
    const { penalty } = config.method.definition;
    if (penalty === undefined) return [];
    const alpha = 1 / (this.options.accumulate * layers.length);
    return layers.flatMap(({ place, adapter }) => {
      const { loss, gradients } = penalty(adapter, { seed: hash32(seed, place.module) });
      const [added = 0] = loss.readSync();
      if (!Number.isFinite(added)) {
        fail('ERR_NON_FINITE', 'finetune', `the penalty of ${place.module}`, 'finite', `${added}`);
      }
      return Object.entries(gradients as Readonly<Record<string, Tensor>>).map(
        ([name, gradient]) =>
          [adapter.parameters[name] as Tensor, multiplyAdd({ a: gradient, alpha })] as const,
      );
    });
  }

  /** Indices of the sequences that a step trains on, over all its passes. */
  sequencesOfStep(step: number): number[] {
    const { accumulate } = this.options;
    return Array.from({ length: accumulate }, (_, pass) => this.#indices(step, pass)).flat();
  }

  /** Ids and targets of the next step, one batch per pass. */
  nextBatches(part?: RulePass): Batch[] {
    return Array.from({ length: this.options.accumulate }, (_, pass) =>
      this.data.train.batch(this.#indices(this.step, pass, part)),
    );
  }

  #indices(step: number, pass: number, part = this.rules?.passOf(step)): number[] {
    return this.#order.indices(step, pass, part);
  }

  /** What a checkpoint has. */
  get stored(): readonly StoredState[] {
    return this.storedOf(this.rules?.merges.counts ?? []);
  }

  /** What a checkpoint has, or had before it was written. @param merged how often each layer was merged */
  storedOf(merged: readonly number[]): readonly StoredState[] {
    return [...this.trainer.stored, ...(this.rules?.storedOf(merged) ?? [])];
  }

  /** Goes on after this number of steps; the caller has written {@link storedOf}. */
  resumeAt(steps: number, optimizerOrigin: number): void {
    this.trainer.resumeAt(steps);
    this.trainer.optimizerOrigin = optimizerOrigin;
    this.rules?.restore();
  }

  /**
   * Mean loss over a set of sequences, in nats per token.
   *
   * @param adapted false for the base model only
   * @param onBatch called before each batch; may throw to stop
   */
  async evaluate(
    set: SequenceSet,
    adapted = true,
    onBatch: (done: number, total: number) => void | Promise<void> = () => {},
  ): Promise<number> {
    this.trainer.showEvaluated();
    try {
      return await this.#evaluate(set, adapted, onBatch);
    } finally {
      this.trainer.showTrained();
    }
  }

  async #evaluate(
    set: SequenceSet,
    adapted: boolean,
    onBatch: (done: number, total: number) => void | Promise<void>,
  ): Promise<number> {
    const { batch, dtype } = this.options;
    if (adapted) this.adapters.refresh();
    const { byModule, experts } = this.adapters;
    const call = { dtype, ...(adapted ? { adapters: byModule, experts } : {}) };
    let total = 0;
    for (let start = 0; start < set.count; start += batch) {
      await onBatch(start, set.count);
      const size = Math.min(batch, set.count - start);
      const { ids, targets } = set.batch(Array.from({ length: size }, (_, i) => start + i));
      const sum = scope(() => {
        const tape = new ModelTape({ recording: false });
        const { features } = this.decoder.forward(tape, { ids, B: size, T: set.T }, call);
        return this.decoder.loss(tape, features, targets, { ...call, scale: 1 / set.T }).loss
          .tensor;
      });
      const [loss = 0] = await sum.read();
      sum.dispose();
      total += loss;
    }
    return total / set.count;
  }

  /** Frees the optimiser's state and the graph. Twice is a no-op. */
  dispose(): void {
    this.#freeCaptured();
    this.trainer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
