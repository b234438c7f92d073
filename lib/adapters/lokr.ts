import type { Value } from '../autograd/gradient-tape.js';
import type { Tape } from '../autograd/tape.js';
import { factorsOf, type KroneckerSizes, kroneckerLinear, kroneckerMaps } from './kronecker.js';
import { defineAdapter } from './method.js';
import { patternOf } from './scaling.js';

interface LokrSize {
  readonly N: number;
  readonly K: number;
  readonly config: { readonly r: number; readonly factor: number; readonly decomposeBoth: boolean };
}

/** Sizes of the factors, and which of them are products of rank r themselves. */
function formOf({ N, K, config }: LokrSize): KroneckerSizes & { left: boolean; right: boolean } {
  const { r, factor, decomposeBoth } = config;
  const [c, d] = factorsOf(K, factor);
  const [a, b] = factorsOf(N, factor);
  const left = decomposeBoth && r < Math.max(a, c) / 2;
  return { a, b, c, d, left, right: r < Math.max(b, d) / 2 };
}

/** A factor as it is, or from its two parts. */
const whole = (t: Tape, cut: boolean, full: Value, a: Value, b: Value): Value =>
  cut ? t.product(a, b) : full;

/**
 * Low-rank Kronecker product: `y = x·wᵀ + loraAlpha / r · x·(w1 ⊗ w2)ᵀ`, w1 [a, c] and w2 [b, d] with
 * a·b = N, c·d = K. Widths are cut by `factor`, or near their roots (−1). w2 is `w2A·w2B` of rank r where
 * that is smaller (`r < max(b, d) / 2`), and so is w1 with `decomposeBoth`. The product is never formed.
 */
export const lokr = defineAdapter({
  method: 'lokr',
  reference:
    'Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, 2023, arXiv:2309.14859',
  defaults: { r: 8, loraAlpha: 8, factor: -1, decomposeBoth: false },
  trained: ['w1', 'w1A', 'w1B', 'w2', 'w2A', 'w2B'],
  shapes: (size) => {
    const { a, b, c, d, left, right } = formOf(size);
    const { r } = size.config;
    return {
      ...(left ? { w1A: [a, r], w1B: [r, c] } : { w1: [a, c] }),
      ...(right ? { w2A: [b, r], w2B: [r, d] } : { w2: [b, d] }),
    };
  },
  check: ({ config: { r, factor } }) => {
    if (!(r > 0)) return ['r', 'above 0', String(r)];
    return factor === -1 || (Number.isInteger(factor) && factor > 0)
      ? undefined
      : ['factor', 'a positive integer, or -1', String(factor)];
  },
  init: (make) => {
    const { left, right } = formOf(make);
    return {
      ...(left ? { w1A: make.zeros('w1A'), w1B: make.kaiming('w1B') } : { w1: make.zeros('w1') }),
      ...(right
        ? { w2A: make.kaiming('w2A'), w2B: make.kaiming('w2B') }
        : { w2: make.kaiming('w2') }),
    };
  },
  prepare: (make) => kroneckerMaps(formOf(make), make.device),
  forward: (t, { x, w, bias, p, config, state, N, K }) => {
    const { left, right } = formOf({ N, K, config });
    const w1 = whole(t, left, p.w1, p.w1A, p.w1B);
    const w2 = whole(t, right, p.w2, p.w2A, p.w2B);
    const scaling = config.loraAlpha / config.r;
    return kroneckerLinear(t, { x, w, bias }, [w1, w2], state, scaling);
  },
  peft: {
    type: 'LOKR',
    zeros: ['rank_dropout', 'module_dropout'],
    tensors: {
      w1: 'lokr_w1',
      w1A: 'lokr_w1_a',
      w1B: 'lokr_w1_b',
      w2: 'lokr_w2',
      w2A: 'lokr_w2_a',
      w2B: 'lokr_w2_b',
    },
    read: (config, module) => ({
      r: patternOf(config.rank_pattern, module) ?? Number(config.r ?? 8),
      loraAlpha: patternOf(config.alpha_pattern, module) ?? Number(config.alpha ?? 8),
      factor: Number(config.decompose_factor ?? -1),
      decomposeBoth: config.decompose_both === true,
    }),
    write: ({ r, loraAlpha, factor, decomposeBoth }) => ({
      r,
      alpha: loraAlpha,
      decompose_factor: factor,
      decompose_both: decomposeBoth,
    }),
  },
});
