import { fail } from '../core/errors.js';
import { suggestion } from '../core/suggestion.js';
import * as all from './all.js';
import type { AnyStart } from './definition/definition.js';

/** Every start that comes with the library: the exports of `all.ts`. */
export const startMethods: readonly AnyStart[] = Object.values(all);

/** @throws ERR_VALUE */
export function startNamed(op: string, operand: string, name: string): AnyStart {
  const own = name.replaceAll('_', '-');
  const found = startMethods.find(({ start }) => start === own);
  if (found !== undefined) return found;
  const known = startMethods.map(({ start }) => start);
  const expected = `one of ${known.join(', ')}, or what defineStart returns`;
  const actual = `${JSON.stringify(name)}${suggestion(own, known)}`;
  return fail('ERR_VALUE', op, operand, expected, actual);
}
