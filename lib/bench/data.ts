/**
 * The operands of every subject, in whatever language: a hash of the index, so that each subject
 * can make them itself, and results can be compared with float64 sums over the same formula.
 */

import { type Job, kScaling } from './job.js';

/** Operands by their hash seeds, and the largest absolute value of each. */
const kOperands = {
  x: { seed: 1, scale: 1 },
  dy: { seed: 2, scale: 1 },
  w: { seed: 3, scale: 0.05 },
  loraA: { seed: 4, scale: 0.05 },
  loraB: { seed: 5, scale: 0.2 },
} as const;
export type Operand = keyof typeof kOperands;

/** Element i of an operand: uniform in [-scale, scale). */
export function element(operand: Operand, i: number): number {
  const { seed, scale } = kOperands[operand];
  let u = (Math.imul(i, 0x9e3779b1) + Math.imul(seed, 0x85ebca6b)) >>> 0;
  u = Math.imul(u ^ (u >>> 15), 0x2c1b3c6d) >>> 0;
  u = (u ^ (u >>> 13)) >>> 0;
  return (u / 2 ** 31 - 1) * scale;
}

/** The first `length` elements, in f32. */
export function elements(operand: Operand, length: number): Float32Array {
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) values[i] = element(operand, i);
  return values;
}

/** Number of elements of a result that are compared. */
const kProbes = 16;

/** The compared elements: of the last row of y, or of dx if a backward pass is the result. */
export function probeIndices({ op, M, K, N }: Job): number[] {
  const width = op === 'matmul' || op === 'loraForward' ? N : K;
  const count = Math.min(kProbes, width);
  return Array.from({ length: count }, (_, i) => (M - 1) * width + Math.floor((i * width) / count));
}

/** The elements at {@link probeIndices}, computed in float64 over the unquantised weight. */
export function expectedProbe(job: Job): number[] {
  const { op, M, K, N, r } = job;
  const backward = op === 'loraBackward' || op === 'lora';
  const [width, inner] = backward ? [K, N] : [N, K];
  const row = (k: number) => element(backward ? 'dy' : 'x', (M - 1) * inner + k);
  const weight = (n: number, k: number) => element('w', backward ? k * K + n : n * K + k);
  const down = (j: number, k: number) =>
    backward ? element('loraB', k * r + j) : element('loraA', j * K + k);
  const up = (n: number, j: number) =>
    backward ? element('loraA', j * K + n) : element('loraB', n * r + j);
  const sum = (length: number, term: (i: number) => number) => {
    let total = 0;
    for (let i = 0; i < length; i++) total += term(i);
    return total;
  };
  const rank = op === 'matmul' ? 0 : r;
  const h = Array.from({ length: rank }, (_, j) => sum(inner, (k) => row(k) * down(j, k)));
  return probeIndices(job).map((index) => {
    const n = index % width;
    const base = sum(inner, (k) => row(k) * weight(n, k));
    return base + kScaling * sum(rank, (j) => (h[j] as number) * up(n, j));
  });
}

/** Relative error of a probe, by norms: 0.1 is usual for four bits; above 0.3 the result is wrong. */
export function probeError(found: readonly number[], expected: readonly number[]): number {
  let [difference, norm] = [0, 0];
  expected.forEach((value, i) => {
    difference += (value - (found[i] ?? Number.NaN)) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(difference / norm);
}
export const kProbeLimit = 0.3;
