import { fail } from '../core/errors.js';
import { suggestion } from '../core/suggestion.js';
import * as all from './all.js';
import type { AnyOptimizer } from './definition/definition.js';

/** Every optimiser that comes with the library: the exports of `all.ts`. */
export const optimizerList: readonly AnyOptimizer[] = Object.values(all);

/** @throws ERR_VALUE */
export function optimizerNamed(op: string, name: string): AnyOptimizer {
  const own = name.replaceAll('_', '-');
  const found = optimizerList.find(({ optimizer }) => optimizer === own);
  if (found !== undefined) return found;
  const known = optimizerList.map(({ optimizer }) => optimizer);
  const expected = `one of ${known.join(', ')}, or a file`;
  const got = `${JSON.stringify(name)}${suggestion(own, known)}`;
  return fail('ERR_VALUE', op, 'optimizer', expected, got);
}
