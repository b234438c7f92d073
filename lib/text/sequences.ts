/** What a trainer takes: sequences of tokens with their targets. */

/** Sequences of one pass. */
export interface Batch {
  /** [sequences · T] */
  readonly ids: Int32Array;
  /** [sequences · T]: the token that follows; negative where none is learned. */
  readonly targets: Int32Array;
  /** [sequences · T]: the row of its sequence at which each row's document begins; absent for one document a sequence. */
  readonly documents?: Int32Array;
  /** Pairs of answers, if the data has them. */
  readonly pairs?: readonly BatchPair[];
}

/** Two answers to one prompt, as rows [begin, end) of a batch. Their targets outside of the answers are negative. */
export interface BatchPair {
  /** Its number in the data. */
  readonly index: number;
  readonly chosen: readonly [begin: number, end: number];
  readonly rejected: readonly [begin: number, end: number];
}

/** Sequences of T tokens. */
export interface Sequences {
  readonly count: number;
  readonly T: number;
  /** Number of targets that are learned, in all sequences. */
  readonly learned: number;
  /** Does every row have a target, and every sequence one document? */
  readonly whole: boolean;
  /** The sequences with the given indices. */
  batch(indices: ArrayLike<number>): Batch;
}

/** Number of targets that are learned. */
export function learnedOf(targets: Int32Array): number {
  return targets.reduce((n, target) => n + (target >= 0 ? 1 : 0), 0);
}

/**
 * Factors of the losses of targets, such that those of each sequence sum to the mean over its learned targets.
 * @param targets [sequences · T]
 */
export function exampleWeights(targets: Int32Array, T: number): Float32Array {
  const weights = new Float32Array(targets.length);
  for (let at = 0; at < targets.length; at += T) {
    weights.fill(1 / Math.max(learnedOf(targets.subarray(at, at + T)), 1), at, at + T);
  }
  return weights;
}

/** The data of a run. */
export interface TrainingData {
  readonly train: Sequences;
  readonly heldOut: Sequences;
  /** Number of tokens in all documents. */
  readonly tokens: number;
}
