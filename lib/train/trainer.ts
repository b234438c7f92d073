/**
 * QLoRA fine-tuning: a frozen quantised base, adapters on its linear layers, AdamW.
 *
 * Everything random depends only on the seed and the step, so a run that resumes at a step gives the
 * same bits as one that never stopped.
 */

import type { Scalar, Tensor } from '@tensorflow/tfjs';
import { fail, LowrankError } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { valuesOf } from '../tfjs/backend-memory.js';
import { tensorflow } from '../tfjs/tensorflow.js';
import { AdamW, clipByGlobalNorm, learningRate } from './adamw.js';
import type { AdapterSet } from './adapter-set.js';
import type { BaseModel } from './base-model.js';
import { crossEntropy } from './cross-entropy.js';
import type { LayerAdapter, ModelKernels } from './kernels.js';
import { type AdapterLookup, llamaFeatures, llamaLogits } from './llama.js';
import { hash32, permutation } from './random.js';
import type { SequenceSet, TextData } from './text-data.js';

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

export class Trainer {
  readonly optimizer: AdamW;
  /** Number of finished steps. */
  step = 0;
  private readonly gradient: Float32Array;
  private epoch = -1;
  private order: Uint32Array = new Uint32Array();

  constructor(
    readonly base: BaseModel,
    readonly adapters: AdapterSet,
    readonly data: TextData,
    readonly options: TrainOptions,
  ) {
    this.gradient = new Float32Array(adapters.values.length);
    this.optimizer = new AdamW(adapters.values.length, { weightDecay: options.weightDecay });
  }

  /**
   * One update: forward and backward passes over the step's batches, clipping, AdamW.
   * @throws LowrankError `ERR_NON_FINITE` if the loss is not finite; then nothing was updated
   */
  train(kernels: ModelKernels): StepResult {
    const { steps, accumulate, lr, warmup, clip } = this.options;
    this.gradient.fill(0);
    let loss = 0;
    for (let pass = 0; pass < accumulate; pass++) loss += this.accumulate(kernels, pass);
    loss /= accumulate;
    if (!Number.isFinite(loss)) {
      const text =
        `finetune: the loss must be finite, got ${loss} at step ${this.step + 1}. ` +
        'Lower the learning rate (--lr)';
      throw new LowrankError('ERR_NON_FINITE', text, { op: 'finetune' });
    }
    const gradientNorm = clipByGlobalNorm(this.gradient, clip);
    const rate = learningRate(this.step, lr, warmup, steps);
    this.optimizer.update(this.adapters.values, this.gradient, rate);
    this.step++;
    const tokens = accumulate * this.options.batch * this.data.train.T;
    return { step: this.step, loss, gradientNorm, lr: rate, tokens };
  }

  /**
   * Runs the next step without an update, for measuring.
   * @returns its loss
   */
  rehearse(kernels: ModelKernels): number {
    this.gradient.fill(0);
    let loss = 0;
    for (let pass = 0; pass < this.options.accumulate; pass++) {
      loss += this.accumulate(kernels, pass);
    }
    return loss / this.options.accumulate;
  }

  /** The gradient of the last step after clipping, flat like {@link AdapterSet.values}. */
  get lastGradient(): Float32Array {
    return this.gradient;
  }

  /** Indices of the sequences that a step trains on, over all its passes. */
  sequencesOfStep(step: number): number[] {
    const { accumulate } = this.options;
    return Array.from({ length: accumulate }, (_, pass) =>
      Array.from(this.indices(step * accumulate + pass)),
    ).flat();
  }

  /** Ids and targets of the next step, one batch per pass, [batch · T] each. */
  nextBatches(): { readonly ids: Int32Array; readonly targets: Int32Array }[] {
    return Array.from({ length: this.options.accumulate }, (_, pass) => this.batchOf(pass));
  }

  private batchOf(pass: number): { readonly ids: Int32Array; readonly targets: Int32Array } {
    return this.data.train.batch(this.indices(this.step * this.options.accumulate + pass));
  }

  /** Adds the contribution of one pass to the gradient. */
  private accumulate(kernels: ModelKernels, pass: number): number {
    const tf = tensorflow();
    const { batch } = this.options;
    const { ids, targets } = this.batchOf(pass);
    const { slots } = this.adapters;
    const dropoutSeed = hash32(this.options.seed, 'dropout', this.step, pass);
    const loss = tf.tidy(() => {
      const tensors = this.parameterTensors();
      const lossOf = (...params: Tensor[]): Scalar => {
        const lookup = this.lookup(params, true, dropoutSeed);
        const features = llamaFeatures(
          this.base,
          { ids, B: batch, T: this.data.train.T },
          kernels,
          lookup,
        );
        return crossEntropy(llamaLogits(this.base, features, kernels), targets);
      };
      const { value, grads } = tf.valueAndGrads(lossOf)(tensors);
      const parameters = slots.flatMap((slot) => slot.parameters);
      parameters.forEach(({ at_elems }, i) => {
        this.add(valuesOf(grads[i] as Tensor), at_elems);
      });
      return valuesOf(value)[0] as number;
    });
    this.addPenalties(dropoutSeed);
    return loss;
  }

  /**
   * The gradient of the method's penalty, as the mean over layers.
   * @throws LowrankError `ERR_NON_FINITE`
   */
  private addPenalties(seed: number): void {
    const { slots } = this.adapters;
    for (const [index, { layer, adapter, parameters }] of slots.entries()) {
      const { penalty } = adapter.definition;
      if (penalty === undefined) return;
      scope(() => {
        for (const { name, values } of parameters) adapter.parameters[name]?.write(values);
        const { loss, gradients } = penalty(adapter, { seed: hash32(seed, index) });
        const [added = 0] = loss.readSync();
        if (!Number.isFinite(added)) {
          const expected = 'finite';
          fail('ERR_NON_FINITE', 'finetune', `the penalty of ${layer.name}`, expected, `${added}`);
        }
        for (const { name, at_elems } of parameters) {
          const gradient = gradients[name]?.readSync();
          if (gradient !== undefined) this.add(gradient, at_elems, slots.length);
        }
      });
    }
  }

  /** Adds values to the gradient, divided by the passes of a step and the number of layers. */
  private add(values: ArrayLike<number>, at: number, layers = 1): void {
    const share = 1 / (this.options.accumulate * layers);
    for (let i = 0; i < values.length; i++) {
      this.gradient[at + i] = (this.gradient[at + i] as number) + share * (values[i] as number);
    }
  }

  /** Sequences of a pass: each epoch is a permutation, determined by the seed and its number. */
  private indices(pass: number): Uint32Array {
    const { batch, seed } = this.options;
    const { count } = this.data.train;
    const indices = new Uint32Array(batch);
    for (let i = 0; i < batch; i++) {
      const at = pass * batch + i;
      const epoch = Math.floor(at / count);
      if (epoch !== this.epoch) {
        this.epoch = epoch;
        this.order = permutation(count, seed, 'epoch', epoch);
      }
      indices[i] = this.order[at % count] as number;
    }
    return indices;
  }

  /**
   * Mean loss over a set of sequences, in nats per token.
   *
   * @param adapted false for the base model only
   * @param onBatch called before each batch; may throw to stop
   */
  async evaluate(
    kernels: ModelKernels,
    set: SequenceSet,
    adapted = true,
    onBatch: (done: number, total: number) => void | Promise<void> = () => {},
  ): Promise<number> {
    const tf = tensorflow();
    const { batch } = this.options;
    let total = 0;
    for (let start = 0; start < set.count; start += batch) {
      await onBatch(start, set.count);
      const size = Math.min(batch, set.count - start);
      const { ids, targets } = set.batch(Array.from({ length: size }, (_, i) => start + i));
      const loss = tf.tidy(() => {
        const lookup = adapted ? this.inferenceLookup() : undefined;
        const features = llamaFeatures(this.base, { ids, B: size, T: set.T }, kernels, lookup);
        const mean = crossEntropy(llamaLogits(this.base, features, kernels), targets);
        return valuesOf(mean)[0] as number;
      });
      total += loss * size;
    }
    return total / set.count;
  }

  /** The current adapters without dropout; the tensors belong to the surrounding `tf.tidy`. */
  private inferenceLookup(): AdapterLookup {
    return this.lookup(this.parameterTensors(), false, 0);
  }

  /** The current adapters for many passes; freed by `dispose`. */
  keptLookup(): { readonly adapters: AdapterLookup; dispose(): void } {
    const tensors = this.parameterTensors();
    return {
      adapters: this.lookup(tensors, false, 0),
      dispose: () => {
        for (const tensor of tensors) tensor.dispose();
      },
    };
  }

  private parameterTensors(): Tensor[] {
    const tf = tensorflow();
    this.adapters.refresh();
    // Copies, because the cpu backend would keep using the array itself, which the optimiser
    // changes.
    return this.adapters.slots.flatMap(({ parameters }) =>
      parameters.map(({ values, shape }) => tf.tensor(values.slice(), [...shape])),
    );
  }

  private lookup(tensors: readonly Tensor[], training: boolean, seed: number): AdapterLookup {
    let at = 0;
    const passes = this.adapters.slots.map(({ adapter, parameters }, index): LayerAdapter => {
      const named = parameters.map(({ name }) => [name, tensors[at++] as Tensor] as const);
      return {
        adapter,
        parameters: Object.fromEntries(named),
        training,
        seed: hash32(seed, index),
      };
    });
    return (layerName): LayerAdapter | undefined => {
      const index = this.adapters.indexOf(layerName);
      return index === undefined ? undefined : passes[index];
    };
  }
}
