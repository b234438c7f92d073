import type { RefusedStart } from '../definition/definition.js';

/** Settings of starts that decompose: passes over the matrix, or 0 to decompose all of it. */
export interface Iterations {
  readonly iterations: number;
}

export function checkIterations({ iterations }: Iterations): RefusedStart | undefined {
  if (Number.isInteger(iterations) && iterations >= 0) return undefined;
  return ['iterations', 'an integer from 0 on (0 decomposes the whole matrix)', String(iterations)];
}

/** For {@link svd}. */
export const passesOf = ({ iterations }: Iterations): number | 'exact' =>
  iterations === 0 ? 'exact' : iterations;
