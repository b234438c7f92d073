/** From which size on a product is faster here than in a backend's own kernel. */

import type { Tensor } from '@tensorflow/tfjs';
import { tensorflow } from '../ops/tensorflow.js';

/** Backends whose memory this library reads and writes in place. */
export type BorrowedBackend = 'cpu' | 'wasm';

/**
 * The least number of multiplications M · N · K, per backend. docs/tensorflow-js.md has the measurements. A backend whose
 * operands are copied pays for that with every product.
 */
export const kLeastProducts: Readonly<Record<BorrowedBackend, number>> & {
  readonly other: number;
} = {
  cpu: 1_700,
  wasm: 30_000,
  other: 4_000_000,
};

/**
 * Elements of a matrix beyond which the wasm backend keeps its product with a vector: reading the matrix from memory then
 * takes most of the time, and is no faster here.
 */
const kLargestForVector = 400_000;

/** Is M × K times K × N faster here, by default? */
export function pays(backend: BorrowedBackend, M: number, N: number, K: number): boolean {
  if (M * N * K < kLeastProducts[backend]) return false;
  return backend === 'cpu' || Math.min(M, N) > 1 || Math.max(M, N) * K <= kLargestForVector;
}

/** Sides of the squares that a calibration times. */
const kSides = [8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160] as const;
const kMargin = 0.95;

const calibrated = new Map<string, number>();

/**
 * Times the backend's product and ours, and returns the least number of multiplications from which on ours takes at most
 * 95 % of the time. Takes under half a second, once for each backend and number of threads.
 *
 * @param theirs and ours: products of two square matrices on the current backend
 */
export function calibrate(
  key: string,
  theirs: (a: Tensor, b: Tensor) => Tensor,
  ours: (a: Tensor, b: Tensor) => Tensor,
): number {
  const known = calibrated.get(key);
  if (known !== undefined) return known;
  const tf = tensorflow();
  let least = Number.POSITIVE_INFINITY;
  for (const side of [...kSides].reverse()) {
    const faster = tf.tidy(() => {
      const [a, b] = [tf.randomNormal([side, side]), tf.randomNormal([side, side])];
      return timesOf([() => theirs(a, b), () => ours(a, b)]);
    });
    if ((faster[1] as number) > kMargin * (faster[0] as number)) break;
    least = side ** 3;
  }
  if (!Number.isFinite(least)) least = 2 * (kSides[kSides.length - 1] as number) ** 3;
  calibrated.set(key, least);
  return least;
}

/** The least time of each body, in milliseconds a call. They take turns. */
function timesOf(bodies: readonly (() => Tensor)[]): number[] {
  const best = bodies.map(() => Number.POSITIVE_INFINITY);
  const calls = bodies.map((body) => {
    body().dispose();
    const start = performance.now();
    body().dispose();
    return Math.max(1, Math.min(50, Math.round(0.3 / Math.max(1e-3, performance.now() - start))));
  });
  for (let round = 0; round < 9; round++) {
    bodies.forEach((body, i) => {
      const count = calls[i] as number;
      const start = performance.now();
      for (let call = 0; call < count; call++) body().dispose();
      best[i] = Math.min(best[i] as number, (performance.now() - start) / count);
    });
  }
  return best;
}
