import { transposed } from '../../linalg/rows.js';
import { smallSvd } from '../../linalg/small-svd.js';
import { defineOptimizer } from '../definition/define.js';
import type { HostUpdate } from '../definition/definition.js';
import { adamCheck, negative, notCount } from '../parts/checks.js';
import { product } from '../parts/matrices.js';
import { adamRule } from '../parts/rules.js';

/** Settings of {@link galore}. */
export interface GaloreSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly rank: number;
  /** Steps between two projectors. */
  readonly gap: number;
  /** Times the step. */
  readonly scale: number;
  /** `std`: from the side that makes the moments smaller; `left`, `right`; `full`: from both. */
  readonly projection: string;
}

type Name = 'm' | 'v' | 'left' | 'right';

const kProjections = ['std', 'left', 'right', 'full'];

/** Is the gradient [N, K] projected from these sides? */
function sidesOf({ projection }: GaloreSettings, N: number, K: number) {
  const right = N >= K;
  return {
    left: projection === 'left' || projection === 'full' || (projection === 'std' && !right),
    right: projection === 'right' || projection === 'full' || (projection === 'std' && right),
  };
}

/** A matrix that is larger than the rank on both sides. */
const projects = (shape: readonly number[], rank: number): boolean =>
  shape.length === 2 && shape.every((size) => size > rank);

/**
 * GaLore (Zhao and others, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, 2024, arXiv:2403.03507), as
 * the authors' program has it: Adam on the gradient that is projected on its leading singular vectors, which every `gap` steps
 * are those of that step's gradient. Moments keep the basis that they were made in, so a change of basis depends on the signs
 * of singular vectors: here the largest entry of each is positive. The step is that of transformers' AdamW (eps before the
 * correction, decay after the step).
 *
 *   R = P_leftᵀ G P_right      p ← p − lr · scale · P_left Adam(R) P_rightᵀ      p ← p − lr · weightDecay · p
 *
 * For dense matrices; a parameter that is no larger than the rank takes steps of AdamW. States: 2 values an element of R.
 */
export const galore = defineOptimizer({
  optimizer: 'galore',
  reference:
    'Zhao and others, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, 2024, arXiv:2403.03507',
  defaults: {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-6,
    rank: 8,
    gap: 200,
    scale: 0.25,
    projection: 'std',
  } as GaloreSettings,
  check: (settings) =>
    adamCheck(settings) ??
    notCount(settings, 'rank', 'gap') ??
    negative(settings, 'scale') ??
    (kProjections.includes(settings.projection)
      ? undefined
      : ['projection', `one of ${kProjections.join(', ')}`, settings.projection]),
  notNegative: ['v'],
  state: ({ tensor: { shape } }, settings) => {
    const { rank } = settings;
    if (!projects(shape, rank)) return { m: shape, v: shape, left: [0], right: [0] };
    const [N = 0, K = 0] = shape;
    const { left, right } = sidesOf(settings, N, K);
    const low = [left ? rank : N, right ? rank : K];
    return { m: low, v: low, left: left ? [rank, N] : [0], right: right ? [rank, K] : [0] };
  },
  update: (u) => galoreUpdate(u, leadingVectors),
});

/** Singular vectors of a gradient as rows: [rank, N] from the left, [rank, K] from the right. */
export type Projector = (
  g: Float32Array,
  N: number,
  K: number,
  rank: number,
) => { readonly left: Float64Array; readonly right: Float64Array };

/** One step with projectors of one's own. */
export function galoreUpdate(u: HostUpdate<GaloreSettings, Name>, projector: Projector): void {
  const { shape, state, settings, p, g, lr, weightDecay, step } = u;
  const { rank, gap, scale } = settings;
  const { m, v, left, right } = state;
  const form = { decay: 'after', earlyEps: true } as const;
  if (!projects(shape, rank)) {
    adamRule(u, m, v, settings, form);
    return;
  }
  const [N = 0, K = 0] = shape;
  const sides = sidesOf(settings, N, K);
  if ((step - 1) % gap === 0) {
    const made = projector(g, N, K, rank);
    if (sides.left) left.set(made.left);
    if (sides.right) right.set(made.right);
  }
  const [rows, cols] = [sides.left ? rank : N, sides.right ? rank : K];
  const [fromLeft, fromRight] = [Float64Array.from(left), Float64Array.from(right)];
  let low: Float64Array = Float64Array.from(g);
  if (sides.left) low = product(fromLeft, rank, N, low, K);
  if (sides.right) low = product(low, rows, K, transposed(fromRight, rank, K), rank);
  // Adam's step of zeros with the learning rate 1 is what moves the parameter.
  const moved = new Float32Array(rows * cols);
  const small = { p: moved, g: Float32Array.from(low), lr: 1, weightDecay: 0, step };
  adamRule(small, m, v, settings, form);
  let back: Float64Array = Float64Array.from(moved);
  if (sides.right) back = product(back, rows, rank, fromRight, K);
  if (sides.left) back = product(transposed(fromLeft, rank, N), N, rank, back, K);
  const kept = 1 - lr * weightDecay;
  for (let i = 0; i < p.length; i++) {
    p[i] = ((p[i] as number) + lr * scale * (back[i] as number)) * kept;
  }
}

/** The leading singular vectors, each with its largest entry positive (the first of equal ones). */
export const leadingVectors: Projector = (g, N, K, rank) => {
  const wide = N <= K;
  const rows = wide ? Float64Array.from(g) : transposed(Float64Array.from(g), N, K);
  const { u, v } = wide ? smallSvd(rows, N, K) : smallSvd(rows, K, N);
  const [left, right] = wide ? [u, v] : [v, u];
  return { left: signed(left, N, rank), right: signed(right, K, rank) };
};

function signed(vectors: Float64Array, n: number, rank: number): Float64Array {
  const out = new Float64Array(rank * n);
  out.set(vectors.subarray(0, rank * n));
  for (let i = 0; i < rank; i++) {
    const row = out.subarray(i * n, (i + 1) * n);
    const largest = row.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
    if (largest < 0) for (let k = 0; k < n; k++) row[k] = -(row[k] as number);
  }
  return out;
}
