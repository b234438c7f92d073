/** Seeded inputs for tests. */
import { type Matrix, map, matrix } from './linear.js';

export interface Source {
  /** Uniform in [0, 1). */
  uniform(): number;
  /** Standard normal. */
  normal(): number;
  /** Integer in [low, high]. */
  integer(low: number, high: number): number;
}

/** A small 32-bit generator (a Weyl sequence through an avalanche function). */
export function source(seed: number): Source {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let word = Math.imul(state ^ (state >>> 15), state | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    uniform,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
    integer: (low, high) => low + Math.floor(uniform() * (high - low + 1)),
  };
}

export function normalMatrix(rows: number, cols: number, seed: number, std = 1): Matrix {
  const from = source(seed);
  return map(matrix(rows, cols), () => std * from.normal());
}

/** Of one sign: uniform in [0, 1), or 2 to a power that is uniform in [low, high). */
export function positiveMatrix(
  rows: number,
  cols: number,
  seed: number,
  powers?: readonly [low: number, high: number],
): Matrix {
  const from = source(seed);
  const draw = (): number => {
    const uniform = from.uniform();
    return powers === undefined ? uniform : 2 ** (powers[0] + uniform * (powers[1] - powers[0]));
  };
  return map(matrix(rows, cols), draw);
}

/** Integers in [-limit, limit] without 0, so that no reference element is mistrusted. */
export function integerMatrix(rows: number, cols: number, seed: number, limit: number): Matrix {
  const from = source(seed);
  const draw = (): number => from.integer(1, limit) * (from.uniform() < 0.5 ? -1 : 1);
  return map(matrix(rows, cols), draw);
}
