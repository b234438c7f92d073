import { hash32, uniform } from '../../core/random.js';
import { rowDots } from '../../linalg/rows.js';
import { defineOptimizer } from '../definition/define.js';
import { notCount, outsideUnit } from '../parts/checks.js';
import { product } from '../parts/matrices.js';

/** Settings of {@link flora}. */
export interface FloraSettings {
  readonly beta: number;
  readonly rank: number;
  /** Steps between two projections. */
  readonly kappa: number;
  readonly seed: number;
}

/** A random projection [rank, K] of variance 1 / rank, from its seed. */
export function floraProjection(seed: number, rank: number, K: number): Float64Array {
  const random = uniform(seed, 'flora');
  const root = 1 / Math.sqrt(rank);
  const out = new Float64Array(rank * K);
  for (let i = 0; i < out.length; i++) {
    // Box and Muller, 1958.
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    out[i] = root * radius * Math.cos(2 * Math.PI * random());
  }
  return out;
}

/**
 * Flora (Hao, Cao and Mou, Flora: Low-Rank Adapters Are Secretly Gradient Compressors, 2024, arXiv:2402.03293), algorithm 2 of
 * the paper: a momentum that is kept in a random projection A [rank, K] of its rows. Every `kappa` steps another seed gives
 * another A, and the momentum is carried over. Nothing but the projected momentum is kept.
 *
 *   M ← M A_old A_newᵀ, where A changes      M ← β M + (1 − β) G Aᵀ      p ← p − lr · (M A + weightDecay · p)
 *
 * For dense matrices [N, K] with K above the rank; other parameters have a momentum of their own size. One state: rank / K
 * values an element.
 */
export const flora = defineOptimizer({
  optimizer: 'flora',
  reference:
    'Hao, Cao and Mou, Flora: Low-Rank Adapters Are Secretly Gradient Compressors, 2024, arXiv:2402.03293',
  defaults: { beta: 0.9, rank: 8, kappa: 1000, seed: 1 } as FloraSettings,
  check: (settings) => outsideUnit(settings, 'beta') ?? notCount(settings, 'rank', 'kappa'),
  rate: 30,
  state: ({ tensor: { shape } }, { rank }) => {
    const [N = 0, K = 0] = shape;
    return { m: shape.length === 2 && K > rank ? [N, rank] : shape };
  },
  update: ({ p, g, shape, state: { m }, lr, weightDecay, step, settings, parameter }) => {
    const { beta, rank, kappa, seed } = settings;
    const [N = 0, K = 0] = shape;
    const low = shape.length === 2 && K > rank;
    const of = (period: number) => floraProjection(hash32(seed, parameter.name, period), rank, K);
    const period = Math.floor((step - 1) / kappa);
    const a = low ? of(period) : new Float64Array();
    if (low && period > 0 && (step - 1) % kappa === 0) {
      const whole = product(Float64Array.from(m), N, rank, of(period - 1), K);
      m.set(rowDots(whole, N, a, rank, K));
    }
    const gradient = low ? rowDots(Float64Array.from(g), N, a, rank, K) : g;
    for (let i = 0; i < m.length; i++) {
      m[i] = beta * (m[i] as number) + (1 - beta) * (gradient[i] as number);
    }
    const moved = low ? product(Float64Array.from(m), N, rank, a, K) : m;
    for (let i = 0; i < p.length; i++) {
      const value = p[i] as number;
      p[i] = value - lr * ((moved[i] as number) + weightDecay * value);
    }
  },
});
