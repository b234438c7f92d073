/** Smoothed sensitivities of trained values, as AdaLoRA and its successors have them. */

import type { RuleParameter, RuleRun } from '../definition/run.js';

/** How a sensitivity is smoothed. */
export interface Smoothing {
  readonly beta1: number;
  readonly beta2: number;
}

/** The arrays of {@link observe}: the smoothed |p · g| and its smoothed uncertainty, for each of these parameters. */
export const sensitivityShapes = (
  parameters: Iterable<RuleParameter>,
): Readonly<Record<string, readonly number[]>> =>
  Object.fromEntries(
    [...parameters].flatMap(({ name, shape }) => [
      [`sensitivity/${name}`, shape],
      [`uncertainty/${name}`, shape],
    ]),
  );

/**
 * Takes the values and gradients of a step into account: `s ← β₁ s + (1 − β₁) |p · g|`, `u ← β₂ u + (1 − β₂) ||p · g| − s|`.
 * A parameter without a gradient counts as one of zeros.
 * @param of with `gradient`, |g| in place of |p · g|
 */
export function observe(
  { state }: Pick<RuleRun<object>, 'state'>,
  parameters: Iterable<RuleParameter>,
  { beta1, beta2 }: Smoothing,
  of: 'product' | 'gradient' = 'product',
): void {
  for (const parameter of parameters) {
    const s = state[`sensitivity/${parameter.name}`] as Float64Array;
    const u = state[`uncertainty/${parameter.name}`] as Float64Array;
    const p = of === 'product' ? parameter.values() : undefined;
    const g = parameter.gradient;
    for (let i = 0; i < s.length; i++) {
      const now = Math.abs((p?.[i] ?? 1) * (g?.[i] ?? 0));
      const smooth = beta1 * (s[i] as number) + (1 - beta1) * now;
      s[i] = smooth;
      u[i] = beta2 * (u[i] as number) + (1 - beta2) * Math.abs(now - smooth);
    }
  }
}

/** `s · u` of an element. */
export function scoresOf({ state }: Pick<RuleRun<object>, 'state'>, name: string): Float64Array {
  const u = state[`uncertainty/${name}`] as Float64Array;
  return (state[`sensitivity/${name}`] as Float64Array).map((s, i) => s * (u[i] as number));
}
