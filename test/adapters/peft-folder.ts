/** Folders of PEFT in memory, for tests whose expected values are written out. */
import { expect } from 'vitest';
import type { RawTensor } from '../../lib/index.js';

/** Values that depend on their place only. */
export const wave = (size: number, phase = 0) =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.3 * i + phase));

export const raw = (
  shape: readonly number[],
  data: Float32Array = wave(shape.reduce((a, b) => a * b, 1)),
): RawTensor & { readonly data: Float32Array } => ({ dtype: 'F32', shape, data });
export type Raw = ReturnType<typeof raw>;

/** Keys behind the module's name; those that begin with base_model as they are. */
export const namesIn = (
  module: string,
  tensors: Readonly<Record<string, RawTensor>>,
): Map<string, RawTensor> =>
  new Map(
    Object.entries(tensors).map(([key, value]) => [
      key.startsWith('base_model') ? key : `base_model.model.${module}.${key}`,
      value,
    ]),
  );

/** Names and shapes, sorted. */
export const shapesOf = (tensors: ReadonlyMap<string, RawTensor>) =>
  [...tensors].map(([name, { shape }]) => [name, shape]).sort();

export const near = (got: ArrayLike<number>, expected: ArrayLike<number>, bound = 1e-5): void => {
  expect(got.length).toBe(expected.length);
  const error = Array.from(got, (value, i) => Math.abs(value - (expected[i] as number)));
  expect(Math.max(0, ...error)).toBeLessThan(bound);
};

/** Central differences of f by each value of `at`: exact where f has a degree of two at most. */
export function differences(at: Float64Array, f: (at: Float64Array) => number): number[] {
  return Array.from(at, (value, i) => {
    const moved = (by: number): number => f(at.map((v, j) => (j === i ? value + by : v)));
    return (moved(1) - moved(-1)) / 2;
  });
}
