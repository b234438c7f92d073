/**
 * A subject that computes: this library, or another. One file per peer in `peers/`; a user's own
 * peer has the same interface (docs/benchmarks.md).
 */

import type * as lowrank from '../index.js';
import type { Job } from './job.js';

/** A peer that is ready to compute one job, in its own process. */
export interface Subject {
  /** One call. It is finished when it returns or resolves; with {@link finish} it may only be queued by then. */
  run(): void | Promise<void>;
  /**
   * Waits for the queued calls. A sample then times its calls as a model makes them, queued one after
   * another, with one wait at the end; with `--latency` each call is awaited.
   */
  finish?(): void | Promise<void>;
  /** The result of a call, row by row: y, or dx if the op has a backward pass. */
  output?(): ArrayLike<number> | Promise<ArrayLike<number>>;
  dispose?(): void | Promise<void>;
  /** Bytes of one stored weight; if not given, those of this library's format. */
  readonly weightBytes?: number;
  /** Copies of the weight that calls rotate over. */
  readonly copies?: number;
  /** How it differs from the requested job, in a few words. */
  readonly note?: string;
}

/** The unit that computes the products. Its peak is the yardstick for the rate. */
export type ComputeType = 'f32' | 'bf16' | 'int8';

/** What a peer gets besides the job. */
export interface Context {
  /** This library. */
  readonly lowrank: typeof lowrank;
  /** Elements of the operands `x` [M, K], `dy` [M, N], `w` [N, K], `loraA` [r, K], `loraB` [N, r]. */
  elements(operand: 'x' | 'dy' | 'w' | 'loraA' | 'loraB'): Float32Array;
  /** How many copies of a weight of this size to rotate over so that it is cold. */
  copies(weightBytes: number): number;
  readonly scaling: number;
}

/** Is a peer installed? */
export type Found = { readonly version: string } | { readonly missing: string };

/** A program that speaks the protocol of subject-process.ts. */
export interface Program {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** What distinguishes this way of running it from others, in a few words, for reports. */
  readonly settings?: string;
}

/** One plug-in. */
export interface Peer {
  /** As in `--peers`. */
  readonly name: string;
  /** The version, or why it is missing. */
  find(): Found | Promise<Found>;
  /** Why it cannot do this job, in a few words; `undefined` if it can. */
  refuses?(job: Job): string | undefined;
  /** The unit it multiplies with; if not given, that of the activations' dtype. */
  readonly computes?: ComputeType;
  /** It computes the layer without its adapter: only those operations are counted. */
  readonly adapter?: false;
  /** In a process of Node... */
  prepare?(job: Job, context: Context): Subject | Promise<Subject>;
  /**
   * ...or as a separate program. If there are several, the ways in which its experts would run it, each
   * is tried for every job and the fastest is measured.
   */
  program?(job: Job): Program | readonly Program[];
}
