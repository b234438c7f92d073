import { transposed } from '../../linalg/rows.js';
import { defineOptimizer } from '../definition/define.js';
import type { HostPair } from '../definition/definition.js';
import { adamw } from '../elementwise/adamw.js';
import { roundToBf16 } from '../parts/bf16.js';
import { adamCheck } from '../parts/checks.js';
import { factorRows, gram, product, sylvester, symmetricInverse } from '../parts/matrices.js';
import { adamRule } from '../parts/rules.js';

const kDamping = 1e-8;

const reference =
  'Wang and others, LoRA-Pro: Are Low-Rank Adapters Properly Optimized?, 2024, arXiv:2407.18242';

/** The matrices of a layer, with B transposed to [r, N]. */
function matricesOf(pair: HostPair<object>) {
  const { r, inFeatures: K, outFeatures: N } = pair;
  const rows = factorRows(pair);
  const [aa, bb] = [gram(rows.a, r, K), gram(rows.b, r, N)];
  const [aInverse, bInverse] = [
    symmetricInverse(gram(rows.a, r, K, kDamping), r),
    symmetricInverse(gram(rows.b, r, N, kDamping), r),
  ];
  return { ...rows, aa, bb, aInverse, bInverse };
}

type Matrices = ReturnType<typeof matricesOf>;

/**
 * The gradients of both factors, gA [r, K] and gB as [r, N], whose change of the weight is nearest to that of the full gradient.
 * @param whole false leaves out the term X, which changes no weight
 */
function adjusted(
  { a, b, aa, bb, aInverse, bInverse }: Matrices,
  gA: Float64Array,
  gB: Float64Array,
  { r, inFeatures: K, outFeatures: N, scaling: s }: HostPair<object>,
  whole: boolean,
): { readonly a: Float64Array; readonly b: Float64Array } {
  const down = product(bInverse, r, r, gA, K).map((value) => value / s ** 2);
  const right = product(aInverse, r, r, gB, N).map((value) => value / s ** 2);
  // (I − B (BᵀB)⁻¹ Bᵀ) of each row.
  const inside = product(product(right, r, N, transposed(b, r, N), r), r, r, bInverse, r);
  const kept = product(inside, r, r, b, N);
  const up = right.map((value, i) => value - (kept[i] as number));
  if (!whole) return { a: down, b: up };
  const c = product(down, r, K, transposed(a, r, K), r).map((value) => -value);
  const x = sylvester(bb, aa, c, r);
  const [xa, bx] = [product(x, r, r, a, K), product(transposed(x, r, r), r, r, b, N)];
  return {
    a: down.map((value, i) => value + (xa[i] as number)),
    b: up.map((value, i) => value - (bx[i] as number)),
  };
}

/**
 * LoRA-Pro (Wang and others, 2024, arXiv:2407.18242) in the form that the authors' program calls `efficient`: AdamW on adjusted
 * gradients of the factors.
 *
 *   gA* = s⁻² (BᵀB)⁻¹ gA + X A      gB* = s⁻² (I − B (BᵀB)⁻¹ Bᵀ) gB (AAᵀ)⁻¹ − B X
 *   BᵀB X + X AAᵀ = −s⁻² (BᵀB)⁻¹ gA Aᵀ
 */
export const loraPro = defineOptimizer({
  optimizer: 'lora-pro',
  reference,
  base: adamw,
  defaults: {},
  precondition: (pair) => {
    const { r, outFeatures: N } = pair;
    const gB = transposed(Float64Array.from(pair.b.g), N, r);
    const made = adjusted(matricesOf(pair), Float64Array.from(pair.a.g), gB, pair, true);
    pair.a.g.set(made.a);
    pair.b.g.set(transposed(made.b, r, N));
  },
});

/** Settings of {@link loraProFull}. */
export interface LoraProFullSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /**
   * Is the second moment made of squares of gradients that are rounded to bf16, after the first step? So it is in the program
   * as it is published.
   */
  readonly bf16: boolean;
}

/**
 * LoRA-Pro in the form that the authors' program calls `full`: Adam's moments are those of the equivalent gradient of the
 * weight, [N, K], and the factors take the step that is nearest to Adam's. In the first step, where loraB is 0, gA stays as
 * it is and gB is divided by AAᵀ. Both moments take 8 bytes for each element of the weight. Weight decay is 1 − lr · decay
 * for the product of the factors.
 *
 *   G = s B gA* + s gB* A (with X = 0)      D = Adam(G)      steps: gA*, gB* of s Bᵀ D and s D Aᵀ
 */
export const loraProFull = defineOptimizer({
  optimizer: 'lora-pro-full',
  reference,
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-8, bf16: false } as LoraProFullSettings,
  check: adamCheck,
  notNegative: ['v'],
  state: ({ tensor: { shape }, role }, _, pair) => {
    if (pair === undefined) return { m: shape, v: shape };
    const [N = 0] = pair.up.tensor.shape;
    const [, K = 0] = pair.down.tensor.shape;
    const own = role === 'up' ? [N, K] : [0];
    return { m: own, v: own };
  },
  update: (u) => adamRule(u, u.state.m, u.state.v, u.settings, { decay: 'before' }),
  updatePairs: (pairs) => {
    for (const pair of pairs) updateFull(pair);
  },
});

function updateFull(pair: HostPair<LoraProFullSettings, 'm' | 'v'>): void {
  const { r, inFeatures: K, outFeatures: N, scaling: s, step, settings } = pair;
  const own = matricesOf(pair);
  const first = step === 1;
  const gA = Float64Array.from(pair.a.g);
  const gB = transposed(Float64Array.from(pair.b.g), N, r);
  const start = (down: Float64Array, up: Float64Array) => ({
    a: down,
    b: product(own.aInverse, r, r, up, N).map((value) => value / s ** 2),
  });
  const equal = first ? start(gA, gB) : adjusted(own, gA, gB, pair, false);
  const [bA, bB] = [transposed(own.b, r, N), transposed(equal.b, r, N)];
  const through = product(bA, N, r, equal.a, K);
  const beside = product(bB, N, r, own.a, K);
  const g = through.map((value, i) => s * (value + (beside[i] as number)));
  const d = direction(pair.b, g, step, settings);
  const down = product(own.b, r, N, d, K).map((value) => s * value);
  const up = product(own.a, r, K, transposed(d, N, K), N).map((value) => s * value);
  const made = first ? start(down, up) : adjusted(own, down, up, pair, true);
  const [stepA, stepB] = [made.a, transposed(made.b, r, N)];
  const keptA = Math.sqrt(1 - pair.a.lr * pair.a.weightDecay);
  const keptB = Math.sqrt(1 - pair.b.lr * pair.b.weightDecay);
  pair.a.p.forEach((value, i) => {
    pair.a.p[i] = value * keptA - pair.a.lr * (stepA[i] as number);
  });
  pair.b.p.forEach((value, i) => {
    pair.b.p[i] = value * keptB - pair.b.lr * (stepB[i] as number);
  });
}

/** Adam's direction for a gradient of the weight; its moments are those of loraB. */
function direction(
  { state: { m, v } }: HostPair<LoraProFullSettings, 'm' | 'v'>['b'],
  g: Float64Array,
  step: number,
  { beta1, beta2, eps, bf16 }: LoraProFullSettings,
): Float64Array {
  const [first, second] = [1 - beta1 ** step, 1 - beta2 ** step];
  return g.map((gradient, i) => {
    const rounded = bf16 && step > 1 ? roundToBf16(gradient) : gradient;
    const square = rounded * rounded;
    const mean = beta1 * (m[i] as number) + (1 - beta1) * gradient;
    const size = beta2 * (v[i] as number) + (1 - beta2) * square;
    m[i] = mean;
    v[i] = size;
    return mean / first / (Math.sqrt(size / second) + eps);
  });
}
