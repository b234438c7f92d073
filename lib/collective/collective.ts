/** What processes that train together do with one another. */

import { LowrankError } from '../core/errors.js';
import type { Tensor } from '../core/tensor.js';

/** Why a collective failed. */
export type CollectiveReason =
  | 'lost' // a rank left, or its connection broke
  | 'timeout' // a rank sent nothing for too long
  | 'mismatch' // ranks called different things, or belong to different runs
  | 'refused' // a peer was not let in, or sent what no rank sends
  | 'no-mpi'; // the library that carries the calls is missing

/**
 * A collective that failed, with the rank that caused it. The code is `ERR_COLLECTIVE`. Buffers are as they were at the
 * call, and every later call fails with the same error.
 * @example
 * try {
 *   await world.sum(gradients);
 * } catch (error) {
 *   if (error instanceof CollectiveError && error.reason === 'lost') console.log(`rank ${error.rank} is gone`);
 * }
 */
export class CollectiveError extends LowrankError {
  override readonly name = 'CollectiveError';

  constructor(
    readonly reason: CollectiveReason,
    /** The rank that caused it; undefined where none is known. */
    readonly rank: number | undefined,
    message: string,
  ) {
    super('ERR_COLLECTIVE', message, { op: 'collective' });
  }
}

/**
 * Processes that compute together. Every rank makes the same calls in the same order; a rank that differs is named in an
 * error. Calls of a rank run one after another.
 */
export interface Collective extends AsyncDisposable {
  /** Of this process, from 0. */
  readonly rank: number;
  /** Number of processes. */
  readonly size: number;
  /**
   * Sums vectors over the ranks, in place and in f32, in the order of {@link treeSum} over the ranks: every rank gets the
   * same bits. Leave `values` alone until the promise settles.
   * @throws ERR_COLLECTIVE; `values` is then unchanged
   */
  sum(values: Float32Array): Promise<void>;
  /** {@link Collective.sum} of a tensor in f32. */
  sumTensor(values: Tensor): Promise<void>;
  /** What each rank gave, by rank; lengths may differ. */
  gather(bytes: Uint8Array): Promise<Uint8Array[]>;
  /** What rank `from` (0) gave; the others give undefined. */
  broadcast(bytes: Uint8Array | undefined, from?: number): Promise<Uint8Array>;
  /** Waits until every rank is here. */
  barrier(): Promise<void>;
  /** Leaves; twice is a no-op. */
  close(): Promise<void>;
}
