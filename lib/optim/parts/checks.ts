/** Checks of settings that optimisers have in common. */

import type { RefusedSetting } from '../../core/refused-setting.js';

type Settings = Readonly<Record<string, number>>;

/** The first of these settings that is not in [0, 1). */
export function outsideUnit<S extends object>(
  settings: S,
  ...names: (keyof S & string)[]
): RefusedSetting | undefined {
  const own = settings as unknown as Settings;
  const found = names.find((name) => !((own[name] as number) >= 0 && (own[name] as number) < 1));
  return found === undefined ? undefined : [found, 'in [0, 1)', String(own[found])];
}

/** The first of these settings that is below 0. */
export function negative<S extends object>(
  settings: S,
  ...names: (keyof S & string)[]
): RefusedSetting | undefined {
  const own = settings as unknown as Settings;
  const found = names.find((name) => !((own[name] as number) >= 0));
  return found === undefined ? undefined : [found, 'at least 0', String(own[found])];
}

/** The first of these settings that is no integer from 1 on. */
export function notCount<S extends object>(
  settings: S,
  ...names: (keyof S & string)[]
): RefusedSetting | undefined {
  const own = settings as unknown as Settings;
  const found = names.find((name) => !Number.isInteger(own[name]) || (own[name] as number) < 1);
  return found === undefined ? undefined : [found, 'an integer from 1 on', String(own[found])];
}

/** Of the settings that Adam's family has. */
export const adamCheck = (settings: {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
}): RefusedSetting | undefined =>
  outsideUnit(settings, 'beta1', 'beta2') ?? negative(settings, 'eps');
