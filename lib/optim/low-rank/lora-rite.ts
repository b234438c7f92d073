import { orthonormalise, rowDots, transposed } from '../../linalg/rows.js';
import { defineOptimizer } from '../definition/define.js';
import type { HostPair } from '../definition/definition.js';
import { adamCheck, negative } from '../parts/checks.js';
import { factorRows, gram, inverse, product, symmetricFunction } from '../parts/matrices.js';
import { adamRule } from '../parts/rules.js';

/** Settings of {@link loraRite}. */
export interface LoraRiteSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Largest norm of all unmagnified gradients; 0 for none. */
  readonly clip: number;
  /** An unmagnified gradient with a larger root mean square counts as 0; 0 for no limit. */
  readonly skip: number;
}

type Name = 'm' | 'v' | 'basis';
type Pair = HostPair<LoraRiteSettings, Name>;

/**
 * LoRA-RITE (Yen and others, LoRA Done RITE: Robust Invariant Transformation Equilibration for LoRA Optimization, 2024,
 * arXiv:2410.20625), as the authors' PyTorch program has it: steps of the weight that do not depend on how it is split into
 * factors. For each factor, with the QR of the other, Q R:
 *
 *   U = gradient · R⁻¹, its norm over all layers at most `clip`      P = Qᵀ · (Q of the step before)
 *   V ← β₂ P V Pᵀ + (1 − β₂) UᵀU / n      M ← β₁ M Pᵀ + (1 − β₁) U V^-½      p ← p − lr · (M R⁻ᵀ + weightDecay · p)
 *
 * β₁ and β₂ are corrected for the start as in Adafactor. It clips gradients itself. Parameters in no pair take steps of AdamW.
 */
export const loraRite = defineOptimizer({
  optimizer: 'lora-rite',
  reference:
    'Yen and others, LoRA Done RITE: Robust Invariant Transformation Equilibration for LoRA Optimization, 2024, arXiv:2410.20625',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-6, clip: 1, skip: 1 } as LoraRiteSettings,
  check: (settings) => adamCheck(settings) ?? negative(settings, 'clip', 'skip'),
  clips: true,
  state: ({ tensor: { shape }, role }, _, pair) => {
    if (pair === undefined) return { m: shape, v: shape, basis: [0] };
    const [r = 0, K = 0] = pair.down.tensor.shape;
    const n = role === 'down' ? K : (pair.up.tensor.shape[0] as number);
    return { m: [r, n], v: [r, r], basis: [r, n] };
  },
  update: (u) => adamRule(u, u.state.m, u.state.v, u.settings, { decay: 'before' }),
  updatePairs: (pairs) => {
    const sides = pairs.flatMap(sidesOf);
    const norm = Math.sqrt(sides.reduce((sum, { u }) => sum + squares(u), 0));
    const [{ settings: { clip = 0 } = {} } = {}] = pairs;
    const factor = clip > 0 && norm > clip ? clip / norm : 1;
    for (const side of sides) updateSide(side, factor);
  },
});

/** One factor in rows of its rank, [r, n]. */
interface Side {
  readonly own: Pair['a'];
  readonly settings: LoraRiteSettings;
  readonly step: number;
  readonly r: number;
  readonly n: number;
  /** The factor has its rows as columns in the model. */
  readonly turned: boolean;
  /** Unmagnified gradient, [r, n]. */
  readonly u: Float64Array;
  /** R⁻¹ of the other factor, [r, r]. */
  readonly other: Float64Array;
  /** P, [r, r]. */
  readonly turn: Float64Array;
}

function sidesOf(pair: Pair): [Side, Side] {
  const { r, inFeatures: K, outFeatures: N, step, settings } = pair;
  const rows = factorRows(pair);
  const [a, b] = [
    basisOf(rows.a, r, K, pair.a.state.basis),
    basisOf(rows.b, r, N, pair.b.state.basis),
  ];
  const gA = Float64Array.from(pair.a.g);
  const gB = transposed(Float64Array.from(pair.b.g), N, r);
  const side = (
    own: Pair['a'],
    g: Float64Array,
    n: number,
    { inverse: other, turn }: ReturnType<typeof basisOf>,
  ): Side => {
    const u = product(transposed(other, r, r), r, r, g, n);
    if (settings.skip > 0 && Math.sqrt(squares(u) / u.length) > settings.skip) u.fill(0);
    return { own, settings, step, r, n, turned: own === pair.b, u, other, turn };
  };
  const sides: [Side, Side] = [side(pair.a, gA, K, b), side(pair.b, gB, N, a)];
  pair.a.state.basis.set(a.q);
  pair.b.state.basis.set(b.q);
  return sides;
}

/** Q as rows, R⁻¹, and P from the basis of the step before. */
function basisOf(rows: Float64Array, r: number, n: number, before: Float32Array) {
  const q = rows.slice();
  orthonormalise(q, r, n);
  return {
    q,
    inverse: inverse(rowDots(q, r, rows, r, n), r, r),
    turn: rowDots(q, r, Float64Array.from(before), r, n),
  };
}

/** β (1 − βᵗ⁻¹) / (1 − βᵗ): 0 in the first step. */
const correctedDecay = (beta: number, step: number): number =>
  (beta * (1 - beta ** (step - 1))) / (1 - beta ** step);

function updateSide(side: Side, factor: number): void {
  const { own, settings, step, r, n, turned, other, turn } = side;
  const [keep1, keep2] = [
    correctedDecay(settings.beta1, step),
    correctedDecay(settings.beta2, step),
  ];
  const u = side.u.map((value) => value * factor);
  const old = Float64Array.from(own.state.v);
  const carried = product(product(turn, r, r, old, r), r, r, transposed(turn, r, r), r);
  const v = gram(u, r, n).map(
    (value, i) => ((1 - keep2) * value) / n + keep2 * (carried[i] as number),
  );
  symmetrise(v, r);
  const root = symmetricFunction(
    v,
    r,
    (value) => 1 / (Math.sqrt(Math.max(0, value)) + settings.eps),
  );
  const moved = product(turn, r, r, Float64Array.from(own.state.m), n);
  const m = product(root, r, r, u, n).map(
    (value, i) => (1 - keep1) * value + keep1 * (moved[i] as number),
  );
  own.state.v.set(v);
  own.state.m.set(m);
  const rows = product(other, r, r, m, n);
  const change = turned ? transposed(rows, r, n) : rows;
  own.p.forEach((value, i) => {
    own.p[i] = value - own.lr * ((change[i] as number) + own.weightDecay * value);
  });
}

function symmetrise(a: Float64Array, r: number): void {
  for (let i = 0; i < r; i++) {
    for (let j = 0; j < i; j++) {
      const mean = ((a[i * r + j] as number) + (a[j * r + i] as number)) / 2;
      a[i * r + j] = mean;
      a[j * r + i] = mean;
    }
  }
}

function squares(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value * value;
  return sum;
}
