/** The distance of the rows of A and the columns of B from orthonormal ones, as a penalty. */

import type { RuleLayer, RuleParameter, RuleRun } from '../definition/run.js';

/** ‖C‖ and C of `C = P Pᵀ − I`, for r rows of n with these strides between rows and entries. */
function excess(p: Float32Array, r: number, n: number, row: number, entry: number) {
  const c = new Float64Array(r * r);
  for (let i = 0; i < r; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = i === j ? -1 : 0;
      for (let k = 0; k < n; k++) {
        sum += (p[i * row + k * entry] as number) * (p[j * row + k * entry] as number);
      }
      c[i * r + j] = sum;
      c[j * r + i] = sum;
    }
  }
  return { c, norm: Math.sqrt(c.reduce((sum, value) => sum + value * value, 0)) };
}

/** Adds `weight · d‖P Pᵀ − I‖ / dP = weight · 2 C P / ‖C‖` to a gradient. @returns the norm */
function addFor(
  { values, gradient }: { readonly values: Float32Array; readonly gradient: Float32Array },
  sizes: readonly [r: number, n: number, row: number, entry: number],
  weight: number,
): number {
  const [r, n, row, entry] = sizes;
  const { c, norm } = excess(values, ...sizes);
  if (norm === 0) return 0;
  for (let i = 0; i < r; i++) {
    for (let k = 0; k < n; k++) {
      let sum = 0;
      for (let j = 0; j < r; j++)
        sum += (c[i * r + j] as number) * (values[j * row + k * entry] as number);
      const at = i * row + k * entry;
      gradient[at] = (gradient[at] as number) + (2 * weight * sum) / norm;
    }
  }
  return norm;
}

/**
 * Adds the gradient of `weight · mean(‖loraA · loraAᵀ − I‖, ‖loraBᵀ · loraB − I‖)` over all layers, Frobenius norms.
 * @returns the penalty
 */
export function addOrthogonality(
  { layers }: Pick<RuleRun<object>, 'layers'>,
  weight: number,
): number {
  if (weight === 0) return 0;
  let sum = 0;
  const share = weight / (2 * layers.length);
  const each = (
    parameter: RuleParameter | undefined,
    sizes: (l: RuleLayer) => number[],
    l: RuleLayer,
  ) => {
    const gradient = parameter?.gradient;
    if (parameter === undefined || gradient === undefined) return;
    const [r, n, row, entry] = sizes(l) as [number, number, number, number];
    sum += addFor({ values: parameter.values(), gradient }, [r, n, row, entry], share);
  };
  for (const layer of layers) {
    each(layer.parameters.loraA, ({ r, K }) => [r, K, K, 1], layer);
    each(layer.parameters.loraB, ({ r, N }) => [r, N, 1, r], layer);
  }
  return share * sum;
}
