import type { RefusedSetting } from '../../core/refused-setting.js';

/** Refuses what is not a whole number of at least `least`. */
export function below(name: string, value: number, least: number): RefusedSetting | undefined {
  if (Number.isInteger(value) && value >= least) return undefined;
  return [name, `a whole number of at least ${least}`, String(value)];
}

/** Refuses what is outside [low, high]. */
export function outside(
  name: string,
  value: number,
  low: number,
  high: number,
): RefusedSetting | undefined {
  if (value >= low && value <= high) return undefined;
  return [name, `in [${low}, ${high}]`, String(value)];
}
