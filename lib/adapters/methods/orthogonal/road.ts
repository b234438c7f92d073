import { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

/** Values of theta, and of alpha, for every pair of outputs. */
const kWidths: Readonly<Record<number, number>> = { 1: 1, 2: 2, 4: 4 };

/**
 * Rotations of pairs of outputs, `y = R·(x·wᵀ + bias)`: in groups of `groupSize` outputs, output i of the
 * first half is paired with output i of the second. Row n of R has `alpha_n cos theta_n` on the diagonal
 * and `∓ alpha'_n sin theta'_n` at its partner, minus in the first half. Variant 1 has one theta and alpha
 * for both outputs of a pair, [N / 2]; variant 2 one for each output, [N]; variant 4 also separate ones for
 * the sine, [2N]: in each group first those of the cosine, then those of the sine.
 */
export const road = defineAdapter({
  method: 'road',
  reference:
    'Liao and Monz, 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability, 2024, arXiv:2409.00119',
  defaults: { variant: 1, groupSize: 64 },
  trained: ['theta', 'alpha'],
  shapes: ({ N, config: { variant } }) => {
    const size = ((kWidths[variant] ?? 1) * N) / 2;
    return { theta: [size], alpha: [size] };
  },
  check: ({ N, config: { variant, groupSize } }) => {
    if (kWidths[variant] === undefined) return ['variant', '1, 2 or 4', String(variant)];
    return groupSize > 0 && groupSize % 2 === 0 && N % groupSize === 0
      ? undefined
      : ['groupSize', `an even divisor of N (${N})`, String(groupSize)];
  },
  init: (make) => ({ theta: make.zeros('theta'), alpha: make.full('alpha', 1) }),
  prepare: ({ N, config: { variant, groupSize: g }, device }) => {
    const half = g / 2;
    const map = (size: number, f: (start: number, within: number) => number): FeatureMap =>
      FeatureMap.gather(
        Int32Array.from({ length: N }, (_, n) => f(n - (n % g), n % g)),
        size,
        { device },
      );
    const signs = Float32Array.from({ length: N }, (_, n) => (n % g < half ? -1 : 1));
    const partner = map(N, (start, within) => start + ((within + half) % g));
    const shared = { partner, signs: Tensor.from(signs, [N], { device }) };
    if (variant === 1) {
      const spread = map(N / 2, (start, within) => start / 2 + (within % half));
      return { ...shared, cosine: spread, sine: spread };
    }
    if (variant === 2) return { ...shared, cosine: undefined, sine: undefined };
    return {
      ...shared,
      cosine: map(2 * N, (start, within) => 2 * start + within),
      sine: map(2 * N, (start, within) => 2 * start + g + within),
    };
  },
  forward: (t, { x, w, bias, p, state }) => {
    const { partner, signs, cosine, sine } = state;
    const straight = t.multiply(p.alpha, t.map(p.theta, 'cos'));
    const across = t.multiply(p.alpha, t.map(p.theta, 'sin'));
    const own = cosine === undefined ? straight : t.features(straight, cosine);
    const other = sine === undefined ? across : t.features(across, sine);
    const y = t.linear(x, w, bias);
    const swapped = t.features(y, partner, { dtype: 'f32' });
    const moved = t.multiply(swapped, t.multiply(other, t.constant(signs)));
    return t.add(t.multiply(y, own), moved);
  },
  peft: {
    type: 'ROAD',
    tensors: { theta: 'road_theta', alpha: 'road_alpha' },
    read: (config) => ({
      variant: Number(String(config.variant ?? 'road_1').replace('road_', '')),
      groupSize: Number(config.group_size ?? 64),
    }),
    write: ({ variant, groupSize }) => ({ variant: `road_${variant}`, group_size: groupSize }),
  },
});
