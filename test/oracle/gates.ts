/** The functions of gates and their derivatives in float64, exact also where they are small. */
import type { GateKind } from '../../lib/index.js';
import { erf } from './activations.js';

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** The distribution of the standard normal: below -3 by the continued fraction of its tail. */
function normal(x: number): number {
  if (x > -3) return 0.5 * (1 + erf(x / Math.SQRT2));
  const size = -x / Math.SQRT2;
  let rest = 0;
  for (let k = 80; k > 0; k--) rest = k / 2 / (size + rest);
  return (0.5 * Math.exp((-x * x) / 2)) / Math.sqrt(Math.PI) / (size + rest);
}

/** f(g) and f'(g). */
export const GATES_64: Readonly<
  Record<Exclude<GateKind, 'silu-clamped'>, (g: number) => readonly [number, number]>
> = {
  silu: (g) => [g * sigmoid(g), sigmoid(g) * (1 + g * (1 - sigmoid(g)))],
  gelu: (g) => [g * normal(g), normal(g) + (g * Math.exp((-g * g) / 2)) / Math.sqrt(2 * Math.PI)],
  'gelu-tanh': (g) => {
    const root = Math.sqrt(2 / Math.PI);
    const s = sigmoid(2 * root * (g + 0.044715 * g ** 3));
    return [g * s, s + g * s * (1 - s) * 2 * root * (1 + 3 * 0.044715 * g * g)];
  },
};

/** The clamped silu of gate and up, with its derivatives by both: 0 where they are clamped. */
export function clampedSilu64(
  gate: number,
  up: number,
): { readonly y: number; readonly byGate: number; readonly byUp: number } {
  const g = Math.min(gate, 7);
  const u = Math.max(-7, Math.min(up, 7));
  const s = sigmoid(1.702 * g);
  return {
    y: g * s * (u + 1),
    byGate: gate > 7 ? 0 : (u + 1) * (s + 1.702 * g * s * (1 - s)),
    byUp: Math.abs(up) > 7 ? 0 : g * s,
  };
}
