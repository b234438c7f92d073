import type { RefusedStart } from '../definition/definition.js';

/** Refuses a setting that is no integer from `least` to `most`. */
export function integerIn<Name extends string>(
  settings: Readonly<Record<Name, number>>,
  name: Name,
  least: number,
  most: number,
): RefusedStart | undefined {
  const value = settings[name];
  if (Number.isInteger(value) && value >= least && value <= most) return undefined;
  return [name, `an integer from ${least} to ${most}`, String(value)];
}

/** Refuses a setting that is not a number from `least` to `most`. */
export function numberIn<Name extends string>(
  settings: Readonly<Record<Name, number>>,
  name: Name,
  least: number,
  most: number,
): RefusedStart | undefined {
  const value = settings[name];
  if (value >= least && value <= most) return undefined;
  return [name, `from ${least} to ${most}`, String(value)];
}
