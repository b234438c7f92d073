/**
 * Fine-tuning of a decoder on packed text: a frozen base, adapters on its linear layers.
 *
 * Everything random depends only on the seed and the step, so a run that resumes at a step gives the
 * same bits as one that never stopped.
 */

import { ModelTape } from '../autograd/model/model-tape.js';
import type { DType } from '../core/dtype.js';
import { fail, LowrankError } from '../core/errors.js';
import { hash32, permutation } from '../core/random.js';
import { outsideScopes, scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { Decoder, DecoderCall } from '../model/decoder.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { Indices } from '../ops/model/indices.js';
import type { AnyOptimizer } from '../optim/definition/definition.js';
import { poissonSample } from '../statistics/privacy/draws.js';
import {
  type Batch,
  exampleWeights,
  learnedOf,
  type Sequences,
  type TrainingData,
} from '../text/sequences.js';
import type { AdapterSet } from './adapter-set.js';
import type { CapturedTraining } from './captured-training.js';
import { PreferenceLoss, type PreferenceScore } from './preference-loss.js';
import type { PrivateSteps } from './private-step.js';
import { learningRate } from './schedule.js';
import type { PassPlace, TrainPass } from './train-pass.js';
import type { TrainStep } from './train-step.js';
import { Trainer } from './trainer.js';

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
  /** Maximum global norm of the gradient; with `privacy`, of each sequence's. */
  readonly clip: number;
  readonly seed: number;
  /**
   * Default none. A private step takes each training sequence with the probability batch · accumulate / sequences, in as many
   * passes of up to `batch` as that needs.
   */
  readonly privacy?: Pick<PrivateSteps, 'noise'>;
  /** Default `adamw`. */
  readonly optimizer?: AnyOptimizer;
  /** Settings of the optimiser that differ from its defaults. */
  readonly optimizerSettings?: Readonly<Record<string, unknown>>;
  /** Of the activations. */
  readonly dtype: DType;
  /** Do blocks run again in the backward pass? */
  readonly recompute: boolean;
  /**
   * Are steps on a CUDA device captured as a graph and replayed? Default true. The bits are the same; what cannot be
   * captured runs without ({@link ModelTrainer.notCaptured}).
   */
  readonly capture?: boolean;
  /** β of the loss over pairs of answers, which the data must have; absent for the loss of the next token. */
  readonly dpoBeta?: number;
}

/** The result of one step. */
export interface StepResult {
  /** Number of finished steps, including this one. */
  readonly step: number;
  /**
   * Mean training loss in nats per token before the update, without the method's penalty; 0 for a private step that took no
   * sequence.
   */
  readonly loss: number;
  readonly gradientNorm: number;
  readonly lr: number;
  readonly tokens: number;
}

/** A batch on the device. */
interface HeldBatch {
  readonly ids: Indices;
  readonly targets: Indices;
  readonly documents?: Indices;
  /** [batch · T] f32: factors of the losses, where not every target counts. */
  readonly weights?: Tensor;
}

/** The batch of a pass, and the rows of the data in it. */
interface PassBatch {
  readonly indices: readonly number[];
  readonly batch: Batch;
}

/** A step as a graph, and where it reads the batches of its passes. */
interface CapturedSteps {
  readonly batches: readonly HeldBatch[];
  readonly training: CapturedTraining;
}

export class ModelTrainer implements Disposable {
  readonly trainer: Trainer;
  readonly #preferences: PreferenceLoss | undefined;
  #captured: CapturedSteps | undefined;
  #notCaptured: string | undefined;
  #epoch = -1;
  #order: Uint32Array = new Uint32Array();

  constructor(
    readonly decoder: Decoder,
    readonly adapters: AdapterSet,
    readonly data: TrainingData,
    readonly options: TrainOptions,
  ) {
    const { weightDecay, clip, seed, optimizer, optimizerSettings, privacy, dpoBeta } = options;
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
    const rate = learningRate(this.step, lr, warmup, steps, constant);
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
    const tokens = sequences * this.data.train.T;
    return { step: this.step, loss, gradientNorm, lr: rate, tokens };
  }

  #queue(lr: number): TrainStep {
    if (this.#notCaptured !== undefined) return this.trainer.step(this.passes(), { lr });
    const { batches, training } = this.#capturedSteps();
    const next = this.nextBatches();
    const weights = this.#weightsOf(next);
    for (const [pass, { ids, targets, documents }] of next.entries()) {
      const held = batches[pass];
      held?.ids.write(ids);
      held?.targets.write(targets);
      if (documents !== undefined) held?.documents?.write(documents);
      const own = weights?.[pass];
      if (own !== undefined) held?.weights?.write(own);
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
      const next = this.nextBatches();
      const weights = this.#weightsOf(next);
      const batches = next.map((batch, pass) => this.#held(batch, weights?.[pass]));
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
    for (const { ids, targets, documents, weights } of batches) {
      for (const each of [ids, targets, documents, weights]) each?.dispose();
    }
  }

  /** A batch on the device. */
  #held({ ids, targets, documents }: Batch, weights: Float32Array | undefined): HeldBatch {
    const { device } = this.decoder.weights;
    const limit = this.decoder.config.vocabSize;
    const { T } = this.data.train;
    return {
      ids: Indices.from(ids, { limit, device }),
      targets: Indices.from(targets, { limit, holes: true, device }),
      ...(documents && { documents: Indices.from(documents, { limit: T, device }) }),
      ...(weights && { weights: Tensor.from(weights, [weights.length], { device }) }),
    };
  }

  /**
   * Factors of the losses of each batch of a step; undefined where every target counts. The losses times them sum to the
   * mean of the step, or of each sequence in a private one.
   */
  #weightsOf(batches: readonly Batch[]): readonly Float32Array[] | undefined {
    const { whole, T } = this.data.train;
    if (whole) return undefined;
    if (this.options.privacy !== undefined) {
      return batches.map(({ targets }) => exampleWeights(targets, T));
    }
    const counted = batches.reduce((sum, { targets }) => sum + learnedOf(targets), 0);
    return batches.map(({ targets }) => new Float32Array(targets.length).fill(1 / counted));
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

  /** The passes of the next step. */
  passes(): readonly TrainPass[] {
    const next = this.#nextPasses();
    const batches = next.map(({ batch }) => batch);
    if (this.#preferences !== undefined) {
      const pairs = batches.reduce((sum, batch) => sum + (batch.pairs?.length ?? 0), 0);
      return next.map(
        (pass): TrainPass =>
          (tape, place) =>
            this.#preferencePass(tape, pass, pairs, place),
      );
    }
    const weights = this.#weightsOf(batches);
    return batches.map(
      (batch, pass): TrainPass =>
        (tape, place) =>
          this.#pass(tape, this.#held(batch, weights?.[pass]), place),
    );
  }

  #call(seed: number) {
    const { dtype, recompute } = this.options;
    const { byModule, experts } = this.adapters;
    return { adapters: byModule, experts, dtype, recompute, seed };
  }

  #pass(tape: ModelTape, { targets, weights, ...tokens }: HeldBatch, { seed }: PassPlace) {
    const { accumulate, privacy } = this.options;
    const { T } = this.data.train;
    const B = targets.length / T;
    const call = this.#call(seed);
    const { features } = this.decoder.forward(tape, { ...tokens, B, T }, call);
    const scale = privacy === undefined ? 1 / (accumulate * targets.length) : 1 / T;
    const share = weights === undefined ? { scale } : { weights };
    const { loss } = this.decoder.loss(tape, features, targets, { ...call, ...share });
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
    const { ids, documents } = this.#held(batch, undefined);
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
  sequencesOfStep(step: number): number[] {
    const { batch, accumulate, privacy, seed } = this.options;
    if (privacy !== undefined) {
      const { count } = this.data.train;
      return [...poissonSample(count, (batch * accumulate) / count, seed, 'sequences', step)];
    }
    return Array.from({ length: accumulate }, (_, pass) =>
      Array.from(this.#indices(step * accumulate + pass)),
    ).flat();
  }

  /** The batches of the next step, one per pass. */
  nextBatches(): Batch[] {
    return this.#nextPasses().map(({ batch }) => batch);
  }

  #nextPasses(): PassBatch[] {
    const { batch } = this.options;
    const sequences = this.sequencesOfStep(this.step);
    return Array.from({ length: Math.ceil(sequences.length / batch) }, (_, pass) => {
      const indices = sequences.slice(pass * batch, (pass + 1) * batch);
      return { indices, batch: this.data.train.batch(indices) };
    });
  }

  /** Sequences of a pass: each epoch is a permutation, determined by the seed and its number. */
  #indices(pass: number): Uint32Array {
    const { batch, seed } = this.options;
    const { count } = this.data.train;
    const indices = new Uint32Array(batch);
    for (let i = 0; i < batch; i++) {
      const at = pass * batch + i;
      const epoch = Math.floor(at / count);
      if (epoch !== this.#epoch) {
        this.#epoch = epoch;
        this.#order = permutation(count, seed, 'epoch', epoch);
      }
      indices[i] = this.#order[at % count] as number;
    }
    return indices;
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
        const { targets, ...tokens } = this.#held(set.batch(indices), undefined);
        const { features } = this.decoder.forward(
          tape,
          { ...tokens, B: indices.length, T: set.T },
          call,
        );
        const scale = set.count / set.learned;
        return this.decoder.loss(tape, features, targets, { ...call, scale }).loss.tensor;
      });
      const [loss = 0] = await sum.read();
      sum.dispose();
      total += loss;
    });
    return total / set.count;
  }

  /**
   * Mean loss over the pairs of a set, and the share of pairs that the model ranks as they are.
   * @param adapted as in {@link evaluate}
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
