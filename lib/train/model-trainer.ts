/**
 * Fine-tuning of a decoder on packed text: a frozen base, adapters on its linear layers.
 *
 * Everything random depends only on the seed and the step, so a run that resumes at a step gives the
 * same bits as one that never stopped.
 */

import { ModelTape } from '../autograd/model/model-tape.js';
import { fail, LowrankError } from '../core/errors.js';
import { hash32 } from '../core/random.js';
import { outsideScopes, scope } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import type { Decoder, DecoderCall } from '../model/decoder.js';
import { tokensOf } from '../model/decoder-tokens.js';
import type { LinearSource } from '../model/linear-source.js';
import { multiplyAdd } from '../ops/elementwise.js';
import type { StoredState } from '../optim/run/optimizer-run.js';
import type { RulePass } from '../rules/definition/run.js';
import { aloneOf } from '../rules/run/requirements.js';
import { RuleEngine } from '../rules/run/rule-engine.js';
import type { Batch, Sequences, TrainingData } from '../text/sequences.js';
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
import { PreferenceLoss, type PreferenceScore } from './preference-loss.js';
import { learningRate } from './schedule.js';
import {
  freeHeld,
  type HeldBatch,
  type PassBatch,
  StepBatches,
  writeHeld,
} from './step-batches.js';
import type { StepResult, TrainOptions } from './train-options.js';
import type { PassPlace, TrainPass } from './train-pass.js';
import type { TrainStep } from './train-step.js';
import { Trainer } from './trainer.js';

export type { StepResult, TrainOptions } from './train-options.js';

/** A step as a graph, and where it reads the batches of its passes. */
interface CapturedSteps {
  readonly batches: readonly HeldBatch[];
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
  readonly #preferences: PreferenceLoss | undefined;
  readonly #batches: StepBatches;
  #captured: CapturedSteps | undefined;
  #notCaptured: string | undefined;

  /**
   * @param source where the base can be read from, for rules that merge into it
   * @throws ERR_TYPE, ERR_VALUE, ERR_DTYPE for options · ERR_UNSUPPORTED for rules that do not fit each other or the run
   */
  constructor(
    readonly decoder: Decoder,
    readonly adapters: AdapterSet,
    readonly data: TrainingData,
    readonly options: TrainOptions,
    source?: LinearSource,
  ) {
    checkTrainOptions('ModelTrainer', options);
    const { weightDecay, clip, seed, optimizer, optimizerSettings, privacy, dpoBeta } = options;
    this.#batches = new StepBatches(decoder, data.train, options);
    const examples = options.batch * options.accumulate;
    this.#preferences =
      dpoBeta === undefined ? undefined : new PreferenceLoss(decoder, dpoBeta, options.dtype);
    this.trainer = new Trainer(adapters.parameters, {
      weightDecay,
      clip,
      seed,
      ...(privacy === undefined ? {} : { privacy: { noise: privacy.noise, examples } }),
      ...(optimizer === undefined ? {} : { optimizer }),
      ...(optimizerSettings === undefined ? {} : { settings: optimizerSettings }),
    });
    const { method, definition } = adapters.config.method;
    if (options.capture === false) this.#notCaptured = 'capture is false';
    else if (privacy !== undefined) this.#notCaptured = 'private steps differ in their sequences';
    else if (!decoder.weights.device.startsWith('cuda')) {
      this.#notCaptured = `${decoder.weights.device} is no CUDA device`;
    } else if (definition.indexesFollowValues === true) {
      this.#notCaptured = `the host draws tables of ${method} from its values in each step`;
    } else if (this.#preferences !== undefined) {
      this.#notCaptured = 'the host weighs the losses of answers';
    } else if (this.trainer.optimizer.capturable !== true) {
      this.#notCaptured = `the optimizer ${this.trainer.optimizer.optimizer} runs on the host`;
    }
    const { rules = [] } = options;
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
      alone: aloneOf(options),
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
    const { steps, lr, warmup } = this.options;
    const sequences = this.sequencesOfStep(this.step).length;
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
    const tokens = sequences * this.data.train.T;
    return { step: this.step, loss, gradientNorm, lr: rate, tokens };
  }

  #queue(lr: number): TrainStep {
    if (this.#notCaptured !== undefined) return this.trainer.step(this.passes(), { lr });
    const { batches, training } = this.#capturedSteps();
    const next = this.nextBatches();
    const weights = this.#batches.weights(next);
    for (const [pass, batch] of next.entries()) writeHeld(batches[pass], batch, weights?.[pass]);
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
      const next = this.nextBatches();
      const weights = this.#batches.weights(next);
      const batches = next.map((batch, pass) => this.#batches.hold(batch, weights?.[pass]));
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
    for (const batch of batches) freeHeld(batch);
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
    const { dtype } = this.options;
    const { byModule, experts } = this.adapters;
    const call = { adapters: byModule, experts, dtype };
    const batches = this.nextBatches(part);
    const scale = this.#batches.scale(batches);
    return batches.map((batch) => ({ batch, T: this.data.train.T, call, scale }));
  }

  /** Called once after the last step, before the last evaluation. */
  finish(): void {
    this.rules?.finish();
  }

  /** The passes of the next step, or of one on a part of the sequences. */
  passes(part?: RulePass, skip?: ReadonlySet<string>): readonly TrainPass[] {
    const next = this.#nextPasses(part);
    const batches = next.map(({ batch }) => batch);
    if (this.#preferences !== undefined) {
      const pairs = batches.reduce((sum, batch) => sum + (batch.pairs?.length ?? 0), 0);
      return next.map(
        (pass): TrainPass =>
          (tape, place) =>
            this.#preferencePass(tape, pass, pairs, place),
      );
    }
    const weights = this.#batches.weights(batches);
    return batches.map(
      (batch, pass): TrainPass =>
        (tape, place) =>
          this.#pass(
            tape,
            this.#batches.hold(batch, weights?.[pass]),
            place,
            skip ?? this.rules?.skips(place.pass),
          ),
    );
  }

  #call(seed: number) {
    const { dtype, recompute } = this.options;
    const { byModule, experts } = this.adapters;
    return { adapters: byModule, experts, dtype, recompute, seed };
  }

  #pass(
    tape: ModelTape,
    { targets, weights, ...rows }: HeldBatch,
    { seed }: PassPlace,
    skip?: ReadonlySet<string>,
  ) {
    const { accumulate, privacy } = this.options;
    const { T } = this.data.train;
    const B = targets.length / T;
    const call = { ...this.#call(seed), ...(skip === undefined ? {} : { skip }) };
    const tokens = { ...rows, B, T };
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
    const scale = privacy === undefined ? 1 / (accumulate * targets.length) : 1 / T;
    const share = weights === undefined ? { scale } : { weights };
    const { loss: entropy } = this.decoder.loss(tape, features, targets, { ...call, ...share });
    const loss = held.reduce(
      (sum, { weight, to }) =>
        tape.add(sum, squaredDistance(tape, features, to), 1, weight / (accumulate * to.size)),
      entropy,
    );
    return {
      loss,
      added: this.#penalties(seed),
      ...(privacy === undefined ? {} : { examples: B }),
    };
  }

  #preferencePass(
    tape: ModelTape,
    { indices, batch }: PassBatch,
    pairs: number,
    { seed }: PassPlace,
  ) {
    const { train: set } = this.data;
    const call = this.#call(seed);
    const { ids, documents } = this.#batches.hold(batch);
    const tokens = { ids, B: this.options.batch, T: set.T, ...(documents && { documents }) };
    const { features } = this.decoder.forward(tape, tokens, call);
    const preferences = this.#preferences as PreferenceLoss;
    const loss = preferences.record(tape, features, { set, indices, batch }, call, pairs);
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
  sequencesOfStep(step: number, part = this.rules?.passOf(step)): number[] {
    return this.#batches.sequences(step, part);
  }

  /** The batches of the next step, or of one on a part of the sequences: one per pass. */
  nextBatches(part?: RulePass): Batch[] {
    return this.#nextPasses(part).map(({ batch }) => batch);
  }

  #nextPasses(part?: RulePass): PassBatch[] {
    return this.#batches.passes(this.sequencesOfStep(this.step, part));
  }

  /** What a checkpoint has. */
  get stored(): readonly StoredState[] {
    return this.storedOf(this.rules?.merges.counts ?? []);
  }

  /** What a checkpoint has, or had before it was written. @param merged how often each layer was merged */
  storedOf(merged: readonly number[]): readonly StoredState[] {
    return [...this.trainer.stored, ...(this.rules?.storedOf(merged) ?? [])];
  }

  /** Goes on after this number of steps; the caller has written `storedOf`. */
  resumeAt(steps: number, optimizerOrigin: number): void {
    this.trainer.resumeAt(steps);
    this.trainer.optimizerOrigin = optimizerOrigin;
    this.rules?.restore();
  }

  /**
   * Mean loss over a set of sequences, in nats per learned token, or per pair of answers.
   *
   * @param adapted false for the base model only
   * @param onBatch called before each batch; may throw to stop
   */
  async evaluate(set: Sequences, adapted = true, onBatch: OnBatch = () => {}): Promise<number> {
    if (this.#preferences !== undefined) return (await this.prefer(set, adapted, onBatch)).loss;
    let total = 0;
    await this.#evaluated(set, adapted, onBatch, async (indices, call) => {
      const sum = scope(() => {
        const tape = new ModelTape({ recording: false });
        const batch = set.batch(indices);
        const tokens = tokensOf(batch, set.T, this.decoder.weights.device);
        const { features } = this.decoder.forward(tape, tokens, call);
        const scale = set.count / set.learned;
        return this.decoder.loss(tape, features, batch.targets, { ...call, scale }).loss.tensor;
      });
      const [loss = 0] = await sum.read();
      sum.dispose();
      total += loss;
    });
    return total / set.count;
  }

  /**
   * Mean loss over the pairs of a set, and the share of pairs that the model ranks as they are.
   * @param adapted as in `evaluate`
   * @throws LowrankError `ERR_VALUE` if the trainer has another loss
   */
  async prefer(
    set: Sequences,
    adapted = true,
    onBatch: OnBatch = () => {},
  ): Promise<PreferenceScore> {
    const preferences = this.#preferences;
    if (preferences === undefined) {
      return fail('ERR_VALUE', 'ModelTrainer.prefer', 'dpoBeta', 'given', 'none');
    }
    let [loss, right, pairs] = [0, 0, 0];
    await this.#evaluated(set, adapted, onBatch, async (indices, call) => {
      const batch = set.batch(indices);
      const found = preferences.score({ set, indices, batch }, call);
      loss += found.loss;
      right += found.right;
      pairs += batch.pairs?.length ?? 0;
    });
    return { loss: loss / pairs, accuracy: right / pairs };
  }

  /** Runs batches of a set with the values that are evaluated. */
  async #evaluated(
    set: Sequences,
    adapted: boolean,
    onBatch: OnBatch,
    run: (indices: readonly number[], call: DecoderCall) => Promise<void>,
  ): Promise<void> {
    const { batch, dtype } = this.options;
    this.trainer.showEvaluated();
    try {
      if (adapted) this.adapters.refresh();
      const { byModule, experts } = this.adapters;
      const call = { dtype, ...(adapted ? { adapters: byModule, experts } : {}) };
      for (let start = 0; start < set.count; start += batch) {
        await onBatch(start, set.count);
        const size = Math.min(batch, set.count - start);
        await run(
          Array.from({ length: size }, (_, i) => start + i),
          call,
        );
      }
    } finally {
      this.trainer.showTrained();
    }
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

type OnBatch = (done: number, total: number) => void | Promise<void>;
