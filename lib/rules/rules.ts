import { fail } from '../core/errors.js';
import { suggestion } from '../core/suggestion.js';
import * as all from './all.js';
import type { AnyRule } from './definition/definition.js';

/** Every rule that comes with the library: the exports of `all.ts`. */
export const ruleList: readonly AnyRule[] = Object.values(all);

/** @throws ERR_VALUE */
export function ruleNamed(op: string, name: string): AnyRule {
  const own = name.replaceAll('_', '-');
  const found = ruleList.find(({ rule }) => rule === own);
  if (found !== undefined) return found;
  const known = ruleList.map(({ rule }) => rule);
  const expected = `one of ${known.join(', ')}, or a file`;
  const got = `${JSON.stringify(name)}${suggestion(own, known)}`;
  return fail('ERR_VALUE', op, 'rule', expected, got);
}
