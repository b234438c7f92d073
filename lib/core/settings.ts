import { fail, wrongType } from './errors.js';
import { checkFinite, refuseField } from './validate.js';

/** What has settings: its defaults, and what it refuses. */
export interface HasSettings {
  readonly defaults: Readonly<Record<string, unknown>>;
  /** Settings have the types of the defaults; a definition declares its own as the parameter. */
  check?(
    settings: object,
  ): readonly [setting: string, expected: string, actual: string] | undefined;
}

/**
 * The settings that are given, over the defaults: of the same names and types, and finite.
 * @param owner its name, for errors
 * @param others names of options beside the settings
 * @throws ERR_TYPE · ERR_VALUE
 */
export function settingsOver(
  op: string,
  owner: string,
  has: HasSettings,
  given: Readonly<Record<string, unknown>>,
  others: readonly string[] = [],
): Readonly<Record<string, unknown>> {
  const settings: Record<string, unknown> = { ...has.defaults };
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(has.defaults, name)) {
      const known = Object.keys(has.defaults);
      const beside = others.length === 0 ? '' : `${others.join(', ')} and `;
      const expected = `limited to ${beside}the settings of ${owner} (${known.join(', ') || 'none'})`;
      refuseField(op, name, [...others, ...known], expected);
    }
    const standard = has.defaults[name];
    if (typeof value !== typeof standard) throw wrongType(op, name, `a ${typeof standard}`, value);
    if (typeof value === 'number') checkFinite(op, name, value);
    settings[name] = value;
  }
  const refused = has.check?.(settings);
  if (refused !== undefined) fail('ERR_VALUE', op, ...refused);
  return settings;
}
