/** Random choices of a private run: they follow from a seed, and nobody who does not know it can foresee them. */

import { createCipheriv, createHash } from 'node:crypto';

const digest = (parts: readonly (string | number)[]): Buffer =>
  createHash('sha256').update(JSON.stringify(parts)).digest();

/** A seed of 53 bits for {@link Tensor.randn}, from a seed and a purpose: SHA-256. */
export function derivedSeed(...parts: readonly (string | number)[]): number {
  return Number(digest(parts).readBigUInt64LE() >> 11n);
}

/**
 * The examples that a step takes, each with the same probability and independently of the others (Poisson sampling): what the
 * accountant assumes. The bits are those of AES-256 in counter mode.
 * @param parts a seed and a purpose
 * @returns indices below count, in ascending order
 */
export function poissonSample(
  count: number,
  rate: number,
  ...parts: readonly (string | number)[]
): Uint32Array {
  const cipher = createCipheriv('aes-256-ctr', digest(parts), Buffer.alloc(16));
  const bytes = cipher.update(Buffer.alloc(8 * count));
  const taken: number[] = [];
  for (let i = 0; i < count; i++) {
    const low = bytes.readUInt32LE(8 * i);
    const high = bytes.readUInt32LE(8 * i + 4);
    if (((high >>> 11) * 2 ** 32 + low) / 2 ** 53 < rate) taken.push(i);
  }
  return Uint32Array.from(taken);
}
