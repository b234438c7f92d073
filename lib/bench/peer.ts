/**
 * Who computes: this library, or another. One file a peer in `peers/`; a user's own has the same
 * interface (docs/benchmarks.md).
 */

import type * as lowrank from '../index.js';
import type { Job } from './job.js';

/** A peer that is ready to compute one job, in a process of its own. */
export interface Subject {
  /** One call, finished when it returns or resolves; with {@link finish} it may only be queued by then. */
  run(): void | Promise<void>;
  /**
   * Waits for the calls that were queued. A sample then times its calls as a model makes them, one queued
   * behind the other, and the wait at its end; with `--latency` each call is waited for.
   */
  finish?(): void | Promise<void>;
  /** The result of a call: y, or dx where the op has a backward pass, row by row. */
  output?(): ArrayLike<number> | Promise<ArrayLike<number>>;
  dispose?(): void | Promise<void>;
  /** Bytes of one weight as it is kept; this library's format where it is not given. */
  readonly weightBytes?: number;
  /** Copies of the weight that calls go round. */
  readonly copies?: number;
  /** How it differs from what was asked for, in a few words. */
  readonly note?: string;
}

/** Unit that does the products, and by whose peak the rate is judged. */
export type ComputeType = 'f32' | 'bf16' | 'int8';

/** What a peer is given besides the job. */
export interface Context {
  /** This library. */
  readonly lowrank: typeof lowrank;
  /** Elements of the operands `x` [M, K], `dy` [M, N], `w` [N, K], `loraA` [r, K], `loraB` [N, r]. */
  elements(operand: 'x' | 'dy' | 'w' | 'loraA' | 'loraB'): Float32Array;
  /** How many copies of a weight of so many bytes to go round, so that it is cold. */
  copies(weightBytes: number): number;
  readonly scaling: number;
}

/** Whether a peer is there. */
export type Found = { readonly version: string } | { readonly missing: string };

/** A program that speaks the protocol of subject-process.ts. */
export interface Program {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** What tells this way of running it from others, in a few words, for reports. */
  readonly settings?: string;
}

/** One plug-in. */
export interface Peer {
  /** As in `--peers`. */
  readonly name: string;
  /** The version found, or why there is none. */
  find(): Found | Promise<Found>;
  /** Why it cannot do this job, in a few words; `undefined` where it can. */
  refuses?(job: Job): string | undefined;
  /** Which unit it multiplies with; that of the activations' dtype where it is not given. */
  readonly computes?: ComputeType;
  /** It computes the layer without its adapter: only those operations count. */
  readonly adapter?: false;
  /** In a process of Node... */
  prepare?(job: Job, context: Context): Subject | Promise<Subject>;
  /**
   * ...or a program of its own. Of several, the ways in which its experts would run it, each is tried at
   * every job and the fastest is measured.
   */
  program?(job: Job): Program | readonly Program[];
}
