import type { RefusedSetting } from '../../core/refused-setting.js';

/** A number of steps: from 1 on as it is; below 1 a share of the run's. */
export const stepsOf = (value: number, steps: number): number =>
  value < 1 ? Math.round(value * steps) : value;

/** Refuses what is neither a number of steps nor a share of the run's. */
export function noSteps(name: string, value: number): RefusedSetting | undefined {
  if (value >= 0 && (value < 1 || Number.isInteger(value))) return undefined;
  return [name, 'a number of steps, or a share of them in [0, 1)', String(value)];
}
