/** The options of `lowrank finetune` for differential privacy. */

import type { PrivacyGoal } from '../../finetune/privacy-goal.js';
import type { Arguments } from '../command/arguments.js';

/**
 * The guarantee that a run is to give; undefined for a run that gives none.
 * @throws UsageError, also for an epsilon without a bound, a delta or a seed
 */
export function readPrivacy(parsed: Arguments): PrivacyGoal | undefined {
  const goal = parsed.firstGiven(['epsilon', 'noise']);
  if (goal === undefined) {
    if (parsed.text('delta') === undefined) return undefined;
    throw parsed.wrong('--delta needs --epsilon or --noise');
  }
  if (goal === 'epsilon' && parsed.text('noise') !== undefined) {
    throw parsed.wrong('takes --epsilon or --noise, got both');
  }
  const needed = {
    clip: '--clip (which bounds the gradient of a sequence)',
    delta: '--delta (below one over the number of sequences)',
    seed: '--seed (which nobody else may know)',
  };
  const missing = Object.entries(needed).filter(([name]) => parsed.text(name) === undefined);
  if (missing.length > 0) {
    throw parsed.wrong(`--${goal} needs ${missing.map(([, text]) => text).join(', ')}`);
  }
  const inside = (value: number) => value > 0 && value < 1;
  const delta = parsed.number('delta', 0, 'a number above 0 and below 1', inside);
  if (goal === 'epsilon') {
    const epsilon = parsed.number('epsilon', 0, 'a positive number', (value) => value > 0);
    return { epsilon, delta };
  }
  const range = (value: number) => value >= 0.05 && value <= 2 ** 20;
  return { noise: parsed.number('noise', 0, 'a number from 0.05 to 1048576', range), delta };
}
