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

/** Text as a value of the type of `standard`; `undefined` if it is not one. */
function valueLike(standard: unknown, text: string): unknown {
  if (typeof standard === 'string') return text;
  if (typeof standard === 'boolean') return { true: true, false: false }[text];
  const value = text.trim() === '' ? Number.NaN : Number(text);
  return Number.isFinite(value) ? value : undefined;
}
