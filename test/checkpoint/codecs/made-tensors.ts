/** Drawn numbers and tensors for tests of layers. Each test file has its own stream, from the same seed. */
import type { LayerTensors } from '../../../lib/index.js';
import { generator } from '../fuzz.js';

export type Raw = LayerTensors[string];

export const random = generator(11);

export const bytes = (count: number, below = 256): Uint8Array<ArrayBuffer> =>
  Uint8Array.from({ length: count }, () => random(below));

/** Of both signs, below 2, exact in every dtype of a scale. */
export const floats = (count: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: count }, () => (random(2001) - 1000) / 512);

export const raw = (dtype: Raw['dtype'], shape: number[], data: Raw['data']): Raw => ({
  dtype,
  shape,
  data,
});
