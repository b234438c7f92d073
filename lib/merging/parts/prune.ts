import type { RefusedSetting } from '../../core/refused-setting.js';
import type { NextRandom } from '../definition/definition.js';

/** A setting that many ways to merge have. */
export interface Density {
  /** The fraction of entries that are kept. */
  readonly density: number;
}

/** Refuses a density outside [0, 1]. */
export function checkDensity({ density }: Density): RefusedSetting | undefined {
  return density >= 0 && density <= 1 ? undefined : ['density', 'in [0, 1]', String(density)];
}

/** Bits of a magnitude that are counted first; the other 15 are counted among those that share them. */
const kLowBits = 15;

/**
 * The k-th largest magnitude, counted from 1, in two passes over the values: the bits of a magnitude are in the order of
 * the magnitudes.
 */
export function kthLargest(values: Float32Array, k: number): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const magnitude = (i: number) => (bits[i] as number) & 0x7fffffff;
  const high = new Uint32Array(2 ** (31 - kLowBits));
  for (let i = 0; i < bits.length; i++)
    high[magnitude(i) >>> kLowBits] = 1 + (high[magnitude(i) >>> kLowBits] as number);
  const [top, left] = fromTop(high, k);
  const low = new Uint32Array(2 ** kLowBits);
  for (let i = 0; i < bits.length; i++) {
    const own = magnitude(i);
    if (own >>> kLowBits === top)
      low[own & (low.length - 1)] = 1 + (low[own & (low.length - 1)] as number);
  }
  const found = Uint32Array.of((top << kLowBits) | fromTop(low, left)[0]);
  return new Float32Array(found.buffer)[0] as number;
}

/** The bin of the k-th largest, and which it is in its bin. */
function fromTop(counts: Uint32Array, k: number): readonly [bin: number, k: number] {
  let left = k;
  let bin = counts.length - 1;
  for (; bin > 0 && left > (counts[bin] as number); bin--) left -= counts[bin] as number;
  return [bin, left];
}

/**
 * Keeps the ⌊density · n⌋ entries of largest magnitude and zeroes the others. Of equal magnitudes at the bound the first
 * ones are kept. A density of 1 keeps all.
 */
export function keepLargest(values: Float32Array, density: number): (value: number) => number {
  const k = Math.floor(density * values.length);
  if (density >= 1) return (value) => value;
  if (k === 0) return () => 0;
  const bound = kthLargest(values, k);
  let above = 0;
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i] as number) > bound) above += 1;
  }
  let left = k - above;
  return (value) => {
    const size = Math.abs(value);
    if (size > bound) return value;
    if (size !== bound || left === 0) return 0;
    left -= 1;
    return value;
  };
}

/**
 * Keeps all entries whose magnitude is at least the (n − ⌊density · n⌋)-th smallest, so one more than ⌊density · n⌋, and all
 * that are equal to it. It is the threshold of the authors' programs of TIES, KnOTS and ComPEFT.
 */
export function keepFromBound(values: Float32Array, density: number): (value: number) => number {
  const k = Math.floor(values.length * density);
  if (k >= values.length) return (value) => value;
  const bound = kthLargest(values, k + 1);
  return (value) => (Math.abs(value) >= bound ? value : 0);
}

/** Keeps each entry with the probability `density`, and divides what is kept by it. */
export function keepRandomly(density: number, random: NextRandom): (value: number) => number {
  if (density >= 1) return (value) => value;
  return (value) => (random() < density ? value / density : 0);
}
