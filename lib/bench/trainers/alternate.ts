/** Steps of two sides in turns. */

import { kFewestClean, median } from '../statistics.js';
import type { TrainerPlan, TrainerSide, TrainerTimes } from './trainer.js';

/** A side: each call is one step, and resolves with its loss once everything is computed. */
export type Step = () => Promise<number>;

/** Compilation, packed weights and fresh pages belong to the first steps. */
const kWarmup = 2;

/** Runs both sides in turns; every other round begins with the other one. */
export async function alternate(
  { repeats, seconds, onStep }: TrainerPlan,
  steps: { readonly without: Step; readonly with: Step },
  baseBytes: { readonly without: number; readonly with: number },
): Promise<TrainerTimes> {
  const sides = {
    without: { samples: [] as number[], losses: [] as number[] },
    with: { samples: [] as number[], losses: [] as number[] },
  };
  const started = performance.now();
  for (let round = 0; round < kWarmup + repeats; round++) {
    const order = round % 2 === 0 ? (['without', 'with'] as const) : (['with', 'without'] as const);
    for (const name of order) {
      const began = performance.now();
      const loss = await steps[name]();
      const elapsed = performance.now() - began;
      sides[name].losses.push(loss);
      if (round >= kWarmup) sides[name].samples.push(elapsed);
    }
    onStep(round + 1, kWarmup + repeats);
    const enough = sides.with.samples.length >= kFewestClean;
    if (enough && performance.now() - started > 1000 * seconds) break;
  }
  const side = (name: 'without' | 'with'): TrainerSide => ({
    min_ms: Math.min(...sides[name].samples),
    median_ms: median(sides[name].samples),
    samples_ms: sides[name].samples.map((ms) => Number(ms.toPrecision(6))),
    losses: sides[name].losses,
    base_bytes: baseBytes[name],
  });
  return { without: side('without'), with: side('with') };
}
