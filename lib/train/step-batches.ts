/** The batches of a run's steps: which sequences, their tensors, and the factors of their losses. */

import { Tensor } from '../core/tensor.js';
import type { Decoder } from '../model/decoder.js';
import { Indices } from '../ops/model/indices.js';
import { poissonSample } from '../statistics/privacy/draws.js';
import { type Batch, exampleWeights, learnedOf, type Sequences } from '../text/sequences.js';
import { SequenceOrder, type SequencePart } from './sequence-order.js';

/** A batch on the device. */
export interface HeldBatch {
  readonly ids: Indices;
  readonly targets: Indices;
  readonly documents?: Indices;
  /** [batch · T] f32: factors of the losses, where not every target counts. */
  readonly weights?: Tensor;
}

/** The batch of a pass, and the rows of the data in it. */
export interface PassBatch {
  readonly indices: readonly number[];
  readonly batch: Batch;
}

/** Sizes of steps, and the seed of their order. */
export interface StepSizes {
  readonly batch: number;
  readonly accumulate: number;
  readonly seed: number;
  /** A private step takes each sequence with the same probability. */
  readonly privacy?: object;
}

/** The batches of the steps over a set of sequences. */
export class StepBatches {
  readonly #order: SequenceOrder;

  constructor(
    readonly decoder: Decoder,
    readonly set: Sequences,
    readonly sizes: StepSizes,
  ) {
    this.#order = new SequenceOrder(set.count, sizes);
  }

  /** Indices of the sequences of a step, over all its passes. */
  sequences(step: number, part?: SequencePart): number[] {
    const { batch, accumulate, privacy, seed } = this.sizes;
    if (privacy !== undefined) {
      const { count } = this.set;
      return [...poissonSample(count, (batch * accumulate) / count, seed, 'sequences', step)];
    }
    return Array.from({ length: accumulate }, (_, pass) =>
      this.#order.indices(step, pass, part),
    ).flat();
  }

  /** The batches of sequences, one a pass. */
  passes(sequences: readonly number[]): PassBatch[] {
    const { batch } = this.sizes;
    return Array.from({ length: Math.ceil(sequences.length / batch) }, (_, pass) => {
      const indices = sequences.slice(pass * batch, (pass + 1) * batch);
      return { indices, batch: this.set.batch(indices) };
    });
  }

  /**
   * Factors of the losses of each batch of a step; undefined where every target counts. The losses times them sum to the
   * mean of the step, or of each sequence in a private one.
   */
  weights(batches: readonly Batch[]): readonly Float32Array[] | undefined {
    const { whole, T } = this.set;
    if (whole) return undefined;
    if (this.sizes.privacy !== undefined) {
      return batches.map(({ targets }) => exampleWeights(targets, T));
    }
    const scale = this.scale(batches);
    return batches.map(({ targets }) => new Float32Array(targets.length).fill(scale));
  }

  /** The factor of each loss of a step whose sum is the mean over its learned targets. */
  scale(batches: readonly Batch[]): number {
    const counted = batches.reduce((sum, { targets }) => sum + learnedOf(targets), 0);
    return 1 / Math.max(counted, 1);
  }

  /** A batch on the device; the caller's. */
  hold({ ids, targets, documents }: Batch, weights?: Float32Array): HeldBatch {
    const { device } = this.decoder.weights;
    const limit = this.decoder.config.vocabSize;
    const { T } = this.set;
    return {
      ids: Indices.from(ids, { limit, device }),
      targets: Indices.from(targets, { limit, holes: true, device }),
      ...(documents && { documents: Indices.from(documents, { limit: T, device }) }),
      ...(weights && { weights: Tensor.from(weights, [weights.length], { device }) }),
    };
  }
}

/** Writes a batch into the tensors of another of its size. */
export function writeHeld(
  held: HeldBatch | undefined,
  { ids, targets, documents }: Batch,
  weights: Float32Array | undefined,
): void {
  held?.ids.write(ids);
  held?.targets.write(targets);
  if (documents !== undefined) held?.documents?.write(documents);
  if (weights !== undefined) held?.weights?.write(weights);
}

/** Frees a batch. */
export function freeHeld({ ids, targets, documents, weights }: HeldBatch): void {
  for (const each of [ids, targets, documents, weights]) each?.dispose();
}
