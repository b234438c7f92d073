/** Training steps as replays of one graph. */

import { type CapturedStep, captureStep } from '../core/capture.js';
import type { Device } from '../core/device.js';
import { DeviceSeed } from '../core/device-seed.js';
import { fail, markClass, notConstructed } from '../core/errors.js';
import { outsideScopes, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, readOptions } from '../core/validate.js';
import {
  freeStep,
  readBoth,
  type StepInputs,
  type StepNumbers,
  type TrainStep,
} from './train-step.js';

/** How {@link Trainer.capture} works. */
export interface CaptureStepOptions {
  /** Steps that run as usual before the capture, so that what is made only once exists; default 2. */
  readonly warmup?: number;
}

/** What a captured step needs of its trainer. */
export interface CapturedTrainer {
  readonly device: Device;
  /** The numbers of the next step. */
  now(lr: number | undefined): {
    readonly lr: number;
    readonly steps: number;
    readonly seeds: readonly number[];
  };
  /** The next step, without a graph. */
  run(lr: number): TrainStep;
  /** Queues the ops of a step that reads its numbers from `inputs`. */
  record(inputs: StepInputs): StepNumbers;
  /** Counts a step. @returns the number of finished steps */
  advance(): number;
}

/** A training step that a CUDA device replays: {@link Trainer.capture} makes it. */
export class CapturedTraining implements Disposable {
  readonly #trainer: CapturedTrainer;
  #warmup: number;
  #inputs: StepInputs | undefined;
  #graph: CapturedStep<StepNumbers> | undefined;
  #disposed = false;

  /** @internal */
  constructor(trainer: CapturedTrainer, options?: CaptureStepOptions) {
    const op = 'Trainer.capture';
    if (typeof trainer?.record !== 'function') throw notConstructed('CapturedTraining', op);
    const { warmup = 2 } = readOptions(op, options, { warmup: true });
    this.#warmup = checkInteger(op, 'warmup', warmup, 0, Number.MAX_SAFE_INTEGER);
    this.#trainer = trainer;
    track(this);
  }

  /** Launches of kernels in the graph; undefined until a step was captured, and where none is. */
  get launches(): number | undefined {
    return this.#graph?.launches;
  }

  /**
   * Queues one step of the trainer: a replay, or before the capture a step as usual.
   * @throws ERR_TYPE, ERR_VALUE; ERR_DISPOSED if the graph, or a tensor that it uses, was freed; ERR_UNSUPPORTED names
   * the op that cannot be captured. Nothing was updated then, and {@link Trainer.step} still works
   */
  step(options?: { readonly lr?: number }): TrainStep {
    const op = 'CapturedTraining.step';
    if (this.#disposed) fail('ERR_DISPOSED', op, 'this', 'live', 'disposed');
    const now = this.#trainer.now(readOptions(op, options, { lr: true }).lr);
    if (!this.#trainer.device.startsWith('cuda') || this.#warmup > 0) {
      const step = this.#trainer.run(now.lr);
      this.#warmup--;
      return step;
    }
    const inputs = this.#inputsOf(now.seeds.length);
    const { device } = this.#trainer;
    this.#graph ??= outsideScopes(() =>
      captureStep(() => this.#trainer.record(inputs), { device }),
    );
    inputs.lr.write([now.lr]);
    inputs.stepsDone.write([now.steps]);
    for (const [pass, seed] of now.seeds.entries()) inputs.seeds[pass]?.write(seed);
    this.#graph.replay();
    return replayed(this.#trainer.advance(), now.lr, this.#graph.result);
  }

  #inputsOf(passes: number): StepInputs {
    const { device } = this.#trainer;
    this.#inputs ??= outsideScopes(() => ({
      lr: Tensor.zeros([1], { device }),
      stepsDone: Tensor.zeros([1], { device }),
      seeds: Array.from({ length: passes }, () => DeviceSeed.from(0, { device })),
    }));
    return this.#inputs;
  }

  /** Frees the graph with its memory; the trainer goes on. Twice is a no-op. */
  dispose(): void {
    this.#disposed = true;
    this.#graph?.dispose();
    const { lr, stepsDone, seeds = [] } = this.#inputs ?? {};
    for (const each of [lr, stepsDone, ...seeds]) each?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(CapturedTraining, 'CapturedTraining');

/** The step of a replay. Its numbers are copied to the host at once, before the next replay writes over them. */
function replayed(step: number, lr: number, made: StepNumbers): TrainStep {
  const numbers = readBoth(made);
  numbers.catch(() => {}); // `read` reports it
  const [loss, gradientNorm] = [made.loss.reshape([1]), made.gradientNorm.reshape([1])];
  return {
    step,
    lr,
    loss,
    gradientNorm,
    read: async () => {
      const both = await numbers;
      freeStep({ loss, gradientNorm });
      return both;
    },
  };
}
