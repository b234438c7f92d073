/** Trainers of somebody else, timed with and without this library. */

import { kFewestClean, median } from '../statistics.js';
import { isClean, threadTimes } from '../thread-times.js';

/** One trainer in one setting, without this library and with it. */
export interface TrainerRow {
  readonly trainer: string;
  /** What was trained, and with what of this library. */
  readonly variant: string;
  readonly backend: string;
  /** Lines of the trainer's program that change. */
  readonly lines: number;
  /** The largest difference of a loss, relative to it. */
  readonly lossDifference: number;
  readonly without_ms: number;
  readonly with_ms: number;
  /** How many times faster with this library: the medians' ratio. */
  readonly ratio: number;
  /** The fewer clean samples of both sides. With less than three, all samples count. */
  readonly clean: number;
  readonly samples: number;
  /** Of the frozen weights, relative to f32. */
  readonly baseMemory?: number;
}

/** One side of a comparison: makes a training step and returns its loss. */
export type Side = () => Promise<number>;

/**
 * Both sides take turns, a step each, so that both see the same machine. The first two steps are not timed.
 *
 * @returns median times over the clean steps, and the largest difference of the losses
 */
export async function takeTurns(
  without: Side,
  withUs: Side,
  steps: number,
): Promise<
  Pick<TrainerRow, 'without_ms' | 'with_ms' | 'ratio' | 'clean' | 'samples' | 'lossDifference'>
> {
  const taken = [without, withUs].map((side) => ({
    side,
    times: [] as { ms: number; clean: boolean }[],
    losses: [] as number[],
  }));
  for (let step = 0; step < steps; step++) {
    for (const { side, times, losses } of taken) {
      const before = threadTimes(process.pid);
      const start = performance.now();
      losses.push(await side());
      const ms = performance.now() - start;
      if (step >= 2) times.push({ ms, clean: isClean(before, threadTimes(process.pid), ms) });
    }
  }
  const [first, second] = taken.map(({ times }) => {
    const clean = times.filter((time) => time.clean);
    const used = clean.length >= kFewestClean ? clean : times;
    return { ms: median(used.map(({ ms }) => ms)), clean: clean.length };
  }) as [{ ms: number; clean: number }, { ms: number; clean: number }];
  return {
    without_ms: first.ms,
    with_ms: second.ms,
    ratio: first.ms / second.ms,
    clean: Math.min(first.clean, second.clean),
    samples: steps - 2,
    lossDifference: lossDifference(taken[0]?.losses ?? [], taken[1]?.losses ?? []),
  };
}

export function lossDifference(without: readonly number[], withUs: readonly number[]): number {
  const apart = without.map((loss, i) => Math.abs(loss - (withUs[i] ?? Number.NaN)) / loss);
  return Math.max(...apart);
}
