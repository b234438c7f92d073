/**
 * A trainer that others wrote, without and with this library. One file per trainer in this folder.
 */

import type { Found } from '../peer.js';

/** How long a case is measured. */
export interface TrainerPlan {
  /** Steps of each side. */
  readonly repeats: number;
  /** A case ends after so many seconds, with at least three steps of each side. */
  readonly seconds: number;
  readonly onStep: (done: number, total: number) => void;
}

/** One side of a case. */
export interface TrainerSide {
  readonly min_ms: number;
  readonly median_ms: number;
  /** Of the measured steps, if the program that ran them told. */
  readonly samples_ms?: readonly number[];
  /** Of all steps from the start, so that both sides can be compared. */
  readonly losses: readonly number[];
  /** Bytes of the frozen weights. */
  readonly base_bytes?: number;
}

/** Both sides of a case; they took turns, step by step. */
export interface TrainerTimes {
  readonly without: TrainerSide;
  readonly with: TrainerSide;
}

/** A model that a trainer trains. */
export interface TrainerCase {
  /** The model, in a few words. */
  readonly name: string;
  /** Lines of the program that must be changed or added. */
  readonly lines: number;
  run(plan: TrainerPlan): Promise<TrainerTimes>;
}

export interface Trainer {
  /** As in `--trainer`. */
  readonly name: string;
  /** The version, or how to install it. */
  find(): Found | Promise<Found>;
  /** @param tiny sizes of no meaning, to try the command */
  cases(tiny: boolean): readonly TrainerCase[];
}
