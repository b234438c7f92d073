import { fail } from '../core/errors.js';
import { suggestion } from '../core/suggestion.js';
import * as all from './all.js';
import type { AnyMerge } from './definition/definition.js';

/** Every way to merge that comes with the library: the exports of `all.ts`. */
export const mergeMethods: readonly AnyMerge[] = Object.values(all);

/** Does it average over clients, by shares? */
export const isAverage = ({ weights }: AnyMerge): boolean => weights === 'shares';

/** PEFT's spelling of the names, `dare_ties_svd`, is known too. @throws ERR_VALUE */
export function mergeNamed(
  op: string,
  operand: string,
  name: string,
  among: readonly AnyMerge[] = mergeMethods,
): AnyMerge {
  const own = name.replaceAll('_', '-');
  const found = among.find(({ merge }) => merge === own);
  if (found !== undefined) return found;
  const known = among.map(({ merge }) => merge);
  const expected = `one of ${known.join(', ')}, or what defineMerge returns`;
  return fail(
    'ERR_VALUE',
    op,
    operand,
    expected,
    `${JSON.stringify(name)}${suggestion(own, known)}`,
  );
}
