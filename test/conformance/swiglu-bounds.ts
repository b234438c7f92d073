/** swiglu and its gradients in float64, and how far a result may be from them. */
import type { DType } from '../../lib/index.js';
import { largest, ulp } from '../oracle.js';

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
export const y64 = (g: number, u: number): number => g * sigmoid(g) * u;
export const dUp64 = (d: number, g: number): number => d * g * sigmoid(g);
export const dGate64 = (d: number, g: number, u: number): number =>
  d * u * sigmoid(g) * (1 + g * (1 - sigmoid(g)));

/** f32 first, then the dtype: half a unit of each, and what the double formula itself may be off. */
export function within(
  name: string,
  dtype: DType,
  actual: number,
  expected: number,
  terms: number,
): void {
  const single = 0.501 * ulp('f32', expected) + 2 ** -48 * terms;
  const limit = dtype === 'f32' ? single : single + ulp(dtype, Math.abs(expected) + single) / 2;
  if (Math.abs(expected) + limit > largest(dtype)) return;
  const error = Math.abs(actual - expected);
  if (!(error <= limit)) throw new Error(`${name}: got ${actual}, expected ${expected}`);
}
