/**
 * The shape that a saved run must have to be read by reports and comparisons. Files are written by hand,
 * and merged and cut by scripts. The error for a missing field names it.
 */

import { printable } from '../core/printable.js';

/** The name of a type, `{ each }` for a list, `{ values }` for an object with any names, or an object's fields. */
type Shape = 'text' | 'number' | { readonly each: Shape } | { readonly values: Shape } | Fields;
/** A field whose name ends in `?` is optional. */
type Fields = { readonly [name: string]: Shape };

/** Fields of the same type. */
const all = (shape: Shape, names: string): Fields =>
  Object.fromEntries(names.split(' ').map((name) => [name, shape]));

const kNumbers: Shape = { each: 'number' };

const kRow: Fields = {
  ...all('text', 'op shape subject version computes note? bound?'),
  ...all('number', 'median_ms p10_ms p90_ms confidence clean samples outliers gflops gbytes_s'),
  ...all('number', 'intensity weight_bytes copies ratio? pairs roof_gflops? share? error?'),
  ...all(kNumbers, 'interval_ms ratio_interval? trial_medians_ms'),
  samples_ms: { each: kNumbers },
};

const kCase: Fields = {
  name: 'text',
  job: {
    ...all('text', 'op format dtype device layer?'),
    ...all('number', 'M K N r threads coldBytes'),
  },
  rows: { each: kRow },
  skipped: { each: all('text', 'subject reason') },
};

const kCeilings: Fields = all('number', 'f32 read copy bf16? int8?');

/** The shape of a BenchResult whose roofline was measured; otherwise that field has the reason. */
export const kResultShape: Fields = {
  ...all('text', 'version date command runner commit? calls?'),
  ...all('number', 'seconds repeats trials busy_cores?'),
  machine: {
    ...all('text', 'cpu isa kernel node governor? gpu?'),
    ...all('number', 'cores lastCache memory'),
    caches: { each: 'text' },
  },
  roofline: { values: kCeilings },
  peers: { each: all('text', 'name version? missing?') },
  'left_out?': { limit_s: 'number', jobs: { each: 'text' } },
  cases: { each: kCase },
};

/** Where a value has another shape, and what is there instead: `cases[0].rows must be a list, got nothing`. */
export function mismatch(value: unknown, shape: Shape, at = ''): string | undefined {
  const wrong = (expected: string) => `${at} must be ${expected}, got ${nameOf(value)}`;
  if (shape === 'text') return typeof value === 'string' ? undefined : wrong('text');
  if (shape === 'number') return typeof value === 'number' ? undefined : wrong('a number');
  if ('each' in shape) {
    if (!Array.isArray(value)) return wrong('a list');
    return first(value.map((item, i) => () => mismatch(item, shape.each as Shape, `${at}[${i}]`)));
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return at === 'roofline' && typeof value === 'string' ? undefined : wrong('an object');
  }
  const below = (name: string) => (at === '' ? name : `${at}.${name}`);
  if ('values' in shape) {
    return first(
      Object.entries(value).map(
        ([name, item]) =>
          () =>
            mismatch(item, shape.values as Shape, below(printable(name))),
      ),
    );
  }
  return first(
    Object.entries(shape).map(([spelt, of]) => () => {
      const name = spelt.replace(/\?$/, '');
      const item = (value as Record<string, unknown>)[name];
      return item === undefined && name !== spelt ? undefined : mismatch(item, of, below(name));
    }),
  );
}

function first(checks: readonly (() => string | undefined)[]): string | undefined {
  for (const check of checks) {
    const found = check();
    if (found !== undefined) return found;
  }
  return undefined;
}

function nameOf(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (typeof value === 'string') return printable(value);
  return Array.isArray(value) ? 'a list' : typeof value === 'object' ? 'an object' : String(value);
}
