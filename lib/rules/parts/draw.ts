import { uniform } from '../../core/random.js';

/** Values that are uniform in ±bound. */
export function uniformValues(size: number, bound: number, seed: number): Float32Array {
  const next = uniform(seed, 'rule');
  return Float32Array.from({ length: size }, () => (2 * next() - 1) * bound);
}
