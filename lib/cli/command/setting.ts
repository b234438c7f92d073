/** `--set NAME=VALUE`: a setting of a method, with a value of the type of its default. */

import type { Arguments } from './arguments.js';

type Settings = Readonly<Record<string, unknown>>;

/** The name in `NAME=VALUE`, if the text has this form. */
export function settingName(text: string): string | undefined {
  const [name, ...rest] = text.split('=');
  return rest.length > 0 ? name : undefined;
}

/**
 * The setting of a text.
 * @param owner name of what has the settings
 * @throws UsageError
 */
export function readSetting(
  parsed: Arguments,
  text: string,
  owner: string,
  defaults: Settings,
): readonly [name: string, value: unknown] {
  const name = settingName(text);
  if (name === undefined || !Object.hasOwn(defaults, name)) {
    const known = Object.keys(defaults).join(', ') || 'none';
    throw parsed.refuse('set', `NAME=VALUE with a setting of ${owner} (${known})`, text);
  }
  const value = valueLike(defaults[name], text.slice(name.length + 1));
  if (value === undefined) throw parsed.refuse('set', `${name}=<${typeof defaults[name]}>`, text);
  return [name, value];
}

/** Who may have settings, under the prefix that names it: `adapter.r=4`. */
export interface SettingOwner {
  readonly prefix: string;
  readonly names: ReadonlySet<string>;
}

/**
 * The texts of `--set` by whose settings they are, without prefixes. A name that nobody has goes to the first owner.
 * @throws UsageError if several have a setting of the name and no prefix says whose is meant
 */
export function splitSettings(
  parsed: Arguments,
  owners: readonly [SettingOwner, ...SettingOwner[]],
): ReadonlyMap<string, readonly string[]> {
  const found = new Map(owners.map(({ prefix }) => [prefix, [] as string[]]));
  for (const text of parsed.texts('set')) {
    const [, named = '', rest = ''] = /^([\w-]+)\.(.*)$/s.exec(text) ?? [];
    const own = found.get(named);
    if (own !== undefined) {
      own.push(rest);
      continue;
    }
    const name = settingName(text);
    const having = owners.filter(({ names }) => name !== undefined && names.has(name));
    if (having.length > 1) {
      const forms = having.map(({ prefix }) => `${prefix}.${name}=VALUE`).join(' or ');
      const many = having.length === 2 ? 'both' : 'all';
      throw parsed.refuse('set', `${forms} (${many} have this setting)`, text);
    }
    found.get((having[0] ?? owners[0]).prefix)?.push(text);
  }
  return found;
}

/** Text as a value of the type of `standard`; `undefined` if it is not one. */
function valueLike(standard: unknown, text: string): unknown {
  if (typeof standard === 'string') return text;
  if (typeof standard === 'boolean') return { true: true, false: false }[text];
  const value = text.trim() === '' ? Number.NaN : Number(text);
  return Number.isFinite(value) ? value : undefined;
}
