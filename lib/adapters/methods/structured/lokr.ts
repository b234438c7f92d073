import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { defineAdapter } from '../../definition/method.js';
import { checkKernel, tapsOf } from '../../parts/layer-kind.js';
import { patternOf } from '../../parts/scaling.js';
import { factorsOf, type KroneckerSizes, kroneckerLinear, kroneckerMaps } from './kronecker.js';
import { rightFactor, tuckerMaps } from './tucker.js';

interface LokrSize {
  readonly N: number;
  readonly K: number;
  readonly config: {
    readonly r: number;
    readonly factor: number;
    readonly decomposeBoth: boolean;
    readonly kernel: readonly number[];
    readonly tucker: boolean;
  };
}

/** The form of a layer's factors. */
interface LokrForm extends KroneckerSizes {
  /** Which of them are themselves products of rank r. */
  readonly left: boolean;
  readonly right: boolean;
  /** Input channels of w2, and the taps of each. */
  readonly channels: number;
  readonly taps: number;
  /** w2 is a Tucker product. */
  readonly tucker: boolean;
}

function formOf({ N, K, config }: LokrSize): LokrForm {
  const { r, factor, decomposeBoth } = config;
  const taps = tapsOf(config);
  const [c, channels] = factorsOf(K / taps, factor);
  const [a, b] = factorsOf(N, factor);
  const left = decomposeBoth && r < Math.max(a, c) / 2;
  const right = r < Math.max(b, channels) / 2;
  const tucker = right && config.tucker && taps > 1;
  return { a, b, c, d: channels * taps, left, right, channels, taps, tucker };
}

/**
 * The kernel of a stored layer: that of w2 or of its core, or, if w2 is split into two matrices, the fewest
 * taps that fit the number of columns of w1.
 */
function kernelOf(
  factor: number,
  shapeOf: (name: 'w1' | 'w1B' | 'w2' | 'w2B' | 't2') => readonly number[] | undefined,
): readonly number[] {
  const seen = (shapeOf('t2') ?? shapeOf('w2'))?.slice(2) ?? [];
  if (seen.length > 0) return seen;
  const c = (shapeOf('w1') ?? shapeOf('w1B'))?.[1];
  const d = shapeOf('w2B')?.[1];
  for (let taps = 1; c !== undefined && d !== undefined && taps <= d; taps++) {
    if (d % taps === 0 && factorsOf((c * d) / taps, factor)[0] === c) return [1, taps];
  }
  return [1, 1];
}

/** A factor itself, or the product of its two parts. */
const whole = (t: Tape, cut: boolean, full: Value, a: Value, b: Value): Value =>
  cut ? t.product(a, b) : full;

/**
 * Low-rank Kronecker product: `y = x·wᵀ + loraAlpha / r · x·(w1 ⊗ w2)ᵀ`, w1 [a, c] and w2 [b, d] with a·b
 * = N, c·d = K. Widths are split by `factor`, or near their roots (−1). w2 is `w2A·w2B` of rank r if that
 * is smaller (`r < max(b, d) / 2`), and so is w1 with `decomposeBoth`. The product is never formed.
 *
 * For a convolution ({@link Im2col}) with a `kernel` of more than one tap, c·d are its channels, and w2 has the taps: [b, d,
 * ...kernel], w2B [r, d · taps], or with `tucker` a core, `w2[n, c, τ] = Σᵢⱼ t2[i, j, τ] · w2A[i, n] · w2B[j, c]`.
 */
export const lokr = defineAdapter({
  method: 'lokr',
  reference:
    'Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, 2023, arXiv:2309.14859',
  defaults: {
    r: 8,
    loraAlpha: 8,
    factor: -1,
    decomposeBoth: false,
    kernel: [1, 1] as readonly number[],
    tucker: false,
  },
  trained: ['w1', 'w1A', 'w1B', 'w2', 'w2A', 'w2B', 't2'],
  shapes: (size) => {
    const { a, b, c, d, left, right, channels, taps, tucker } = formOf(size);
    const { r, kernel } = size.config;
    const first = left ? { w1A: [a, r], w1B: [r, c] } : { w1: [a, c] };
    if (tucker) return { ...first, w2A: [r, b], w2B: [r, channels], t2: [r, r, ...kernel] };
    if (right) return { ...first, w2A: [b, r], w2B: [r, d] };
    return { ...first, w2: taps > 1 ? [b, channels, ...kernel] : [b, d] };
  },
  check: ({ K, config: { r, factor, kernel } }) => {
    if (!(r > 0)) return ['r', 'above 0', String(r)];
    return factor === -1 || (Number.isInteger(factor) && factor > 0)
      ? checkKernel({ kernel }, K)
      : ['factor', 'a positive integer, or -1', String(factor)];
  },
  init: (make) => {
    const { left, right, d, taps, tucker } = formOf(make);
    const core = tucker ? { t2: make.kaiming('t2', make.config.r * taps) } : {};
    return {
      ...(left ? { w1A: make.zeros('w1A'), w1B: make.kaiming('w1B') } : { w1: make.zeros('w1') }),
      ...(right
        ? { w2A: make.kaiming('w2A'), w2B: make.kaiming('w2B'), ...core }
        : { w2: make.kaiming('w2', d) }),
    };
  },
  prepare: (make) => {
    const form = formOf(make);
    const { channels, taps, tucker } = form;
    const core = tucker ? tuckerMaps(make.config.r, taps, channels, make.device) : undefined;
    return { ...kroneckerMaps(form, make.device), core };
  },
  forward: (t, { x, w, bias, p, config, state, N, K }) => {
    const { left, right, taps, b, d } = formOf({ N, K, config });
    const w1 = whole(t, left, p.w1, p.w1A, p.w1B);
    const w2 =
      state.core === undefined
        ? whole(t, right, p.w2, p.w2A, p.w2B)
        : t.product(t.transpose(p.w2A), rightFactor(t, p.t2, p.w2B, taps, state.core));
    const scaling = config.loraAlpha / config.r;
    const factors = [w1, t.reshape(w2, [b, d])] as const;
    return kroneckerLinear(t, { x, w, bias }, factors, state, scaling);
  },
  peft: {
    type: 'LOKR',
    patterns: { r: 'rank_pattern', alpha: 'alpha_pattern' },
    zeros: ['rank_dropout', 'module_dropout'],
    tensors: {
      w1: 'lokr_w1',
      w1A: 'lokr_w1_a',
      w1B: 'lokr_w1_b',
      w2: 'lokr_w2',
      w2A: 'lokr_w2_a',
      w2B: 'lokr_w2_b',
      t2: 'lokr_t2',
    },
    read: (config, module, shapeOf) => ({
      r: patternOf(config.rank_pattern, module) ?? Number(config.r ?? 8),
      loraAlpha: patternOf(config.alpha_pattern, module) ?? Number(config.alpha ?? 8),
      factor: Number(config.decompose_factor ?? -1),
      decomposeBoth: config.decompose_both === true,
      kernel: kernelOf(Number(config.decompose_factor ?? -1), shapeOf),
      tucker: shapeOf('t2') !== undefined,
    }),
    write: ({ r, loraAlpha, factor, decomposeBoth, tucker }) => ({
      r,
      alpha: loraAlpha,
      decompose_factor: factor,
      decompose_both: decomposeBoth,
      use_effective_conv2d: tucker,
    }),
  },
});
