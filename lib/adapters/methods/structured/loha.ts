import { denseUpdate } from '../../../autograd/dense-update.js';
import type { Value } from '../../../autograd/gradient-tape.js';
import { defineAdapter } from '../../definition/method.js';
import { checkKernel, tapsOf } from '../../parts/layer-kind.js';
import { patternOf } from '../../parts/scaling.js';
import { rightFactor, tuckerMaps } from './tucker.js';

/**
 * ABBA (Singhal et al., 2025, arXiv:2505.14238) in PEFT's config: the same formula, with each of the two
 * products scaled by `alpha / √r`.
 */
function isAbba({ use_khatri_rao, init_weights }: Readonly<Record<string, unknown>>): boolean {
  if (typeof use_khatri_rao === 'boolean') return use_khatri_rao;
  return typeof init_weights === 'string' && init_weights.toLowerCase() === 'abba';
}

/**
 * A Hadamard product of two low-rank products: `ΔW = loraAlpha / r · (w1A · w1B) ⊙ (w2A · w2B)`, of rank up to
 * r². The update is made and differentiated tile by tile ({@link denseUpdate}). For a convolution
 * ({@link Im2col}) with a kernel of more than one tap the factors are Tucker's, with a core each: `ΔW[n, c, τ]
 * = loraAlpha / r · Π over s = 1, 2 of Σᵢⱼ tₛ[i, j, τ] · wₛA[i, n] · wₛB[j, c]`.
 */
export const loha = defineAdapter({
  method: 'loha',
  reference:
    'Hyeon-Woo et al., FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, 2021, arXiv:2108.06098',
  defaults: { r: 8, loraAlpha: 8, kernel: [1, 1] as readonly number[] },
  trained: ['w1A', 'w1B', 'w2A', 'w2B', 't1', 't2'],
  check: ({ K, config }) => checkKernel(config, K),
  shapes: ({ N, K, config }) => {
    const { r, kernel } = config;
    const taps = tapsOf(config);
    if (taps === 1) return { w1A: [N, r], w1B: [r, K], w2A: [N, r], w2B: [r, K] };
    const [a, b, core] = [
      [r, N],
      [r, K / taps],
      [r, r, ...kernel],
    ];
    return { w1A: a, w1B: b, w2A: a, w2B: b, t1: core, t2: core };
  },
  init: (make) => {
    const taps = tapsOf(make.config);
    const factors = {
      w1A: make.kaiming('w1A'),
      w1B: make.kaiming('w1B'),
      w2A: make.kaiming('w2A'),
      w2B: make.zeros('w2B'),
    };
    if (taps === 1) return factors;
    const fan = make.config.r * taps;
    return { ...factors, t1: make.kaiming('t1', fan), t2: make.kaiming('t2', fan) };
  },
  prepare: ({ K, config, device }) => {
    const taps = tapsOf(config);
    return taps === 1 ? undefined : tuckerMaps(config.r, taps, K / taps, device);
  },
  forward: (t, { x, w, bias, p, state, N, config }) => {
    const { r, loraAlpha } = config;
    const taps = tapsOf(config);
    const [left, right] =
      state === undefined
        ? [(a: Value) => a, (b: Value) => b]
        : [
            (a: Value) => t.transpose(a),
            (b: Value, core: Value) => rightFactor(t, core, b, taps, state),
          ];
    const update = denseUpdate(t, x, {
      N,
      rows: { a1: left(p.w1A), a2: left(p.w2A) },
      inputs: { b1: right(p.w1B, p.t1), b2: right(p.w2B, p.t2) },
      tile: (tape, { a1, a2, b1, b2 }) =>
        tape.multiply(tape.product(a1, b1), tape.product(a2, b2), loraAlpha / r),
    });
    return t.add(t.linear(x, w, bias), update);
  },
  peft: {
    type: 'LOHA',
    patterns: { r: 'rank_pattern', alpha: 'alpha_pattern' },
    zeros: ['rank_dropout', 'module_dropout'],
    tensors: {
      w1A: 'hada_w1_a',
      w1B: 'hada_w1_b',
      w2A: 'hada_w2_a',
      w2B: 'hada_w2_b',
      t1: 'hada_t1',
      t2: 'hada_t2',
    },
    read: (config, module, shapeOf) => {
      const { r, alpha, rank_pattern, alpha_pattern } = config;
      const own = patternOf(alpha_pattern, module) ?? Number(alpha ?? 8);
      const core = shapeOf('t1');
      return {
        r: patternOf(rank_pattern, module) ?? Number(r ?? 8),
        loraAlpha: core === undefined && isAbba(config) ? own * own : own,
        kernel: core?.slice(2) ?? [1, 1],
      };
    },
    write: (config) => ({
      r: config.r,
      alpha: config.loraAlpha,
      use_effective_conv2d: tapsOf(config) > 1,
    }),
  },
});
