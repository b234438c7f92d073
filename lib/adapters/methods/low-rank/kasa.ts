import { Tensor } from '../../../core/tensor.js';
import { transposed } from '../../../linalg/rows.js';
import { trailingTriplets } from '../../../linalg/tensors/triplets.js';
import type { AdapterMaker } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

type Make = AdapterMaker<{ readonly r: number }, 'tailA' | 'tailB'>;

/** The r smallest singular triplets of the weight as factors of their sum, tailB · tailA. */
function tailOf(make: Make): { tailA: Float32Array; tailB: Float32Array } {
  const { r } = make.config;
  const { right, scaledLeft } = trailingTriplets(make.weight('kasa'), r, 0);
  return {
    tailA: Float32Array.from(right),
    tailB: Float32Array.from(transposed(scaledLeft, r, make.N)),
  };
}

/** [loraA; tailA] and [loraB, tailB], so that the added and the subtracted part are one product. */
function besideEachOther(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) {
  const { device } = top;
  const [r = 0, K = 0] = top.shape;
  const [N = 0] = left.shape;
  const a = new Float32Array(2 * r * K);
  a.set(top.readSync());
  a.set(bottom.readSync(), r * K);
  const [b, tail] = [left.readSync(), right.readSync()];
  const whole = Float32Array.from({ length: 2 * r * N }, (_, at) => {
    const [n, i] = [Math.floor(at / (2 * r)), at % (2 * r)];
    return (i < r ? b[n * r + i] : tail[n * r + i - r]) as number;
  });
  return {
    loraA: Tensor.from(a, [2 * r, K], { device }),
    loraB: Tensor.from(whole, [N, 2 * r], { device }),
  };
}

/**
 * Knowledge-aware singular values: a diagonal between the factors, over a base without its r smallest singular triplets: `y =
 * x·(w - tailB · tailA)ᵀ + scaling · ((dropout(x) · loraAᵀ) ⊙ diag) · loraBᵀ`, with the frozen factors tailA [r, K] and tailB [N,
 * r] of those triplets. They are computed from the base weight when the adapter is made or read, by a decomposition on the host,
 * which takes long for large weights. A folder does not store them; PEFT subtracts the same when it loads.
 */
export const kasa = defineAdapter({
  method: 'kasa',
  reference:
    'Wang et al., KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models, 2024, arXiv:2412.06071',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'diag', 'loraB'],
  frozen: ['tailA', 'tailB'],
  shapes: ({ N, K, config: { r } }) => ({
    loraA: [r, K],
    diag: [r],
    loraB: [N, r],
    tailA: [r, K],
    tailB: [N, r],
  }),
  check: ({ N, K, config: { r } }) =>
    r >= 1 && r <= Math.min(N, K) ? undefined : ['r', `from 1 to ${Math.min(N, K)}`, String(r)],
  init: (make) => {
    const { tailA, tailB } = tailOf(make);
    return {
      loraA: make.kaiming('loraA'),
      diag: make.normal('diag', 1),
      loraB: make.zeros('loraB'),
      tailA: make.values('tailA', (i) => tailA[i] as number),
      tailB: make.values('tailB', (i) => tailB[i] as number),
    };
  },
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.multiply(t.shrink(x, p.loraA, { dropout: config.dropout }), p.diag);
    const y = t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
    return t.add(y, t.matmul(t.shrink(x, p.tailA), p.tailB), 1, -1);
  },
  update: ({ loraA, loraB, diag, tailA, tailB }, config) => {
    const scaling = scalingOf(config);
    const { device } = loraA;
    const values = diag.readSync();
    const core = Float32Array.from({ length: 2 * config.r }, (_, i) =>
      i < config.r ? scaling * (values[i] as number) : -1,
    );
    return {
      ...besideEachOther(loraA, tailA, loraB, tailB),
      core: Tensor.from(core, [2 * config.r], { device }),
    };
  },
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ kasa_config }) => kasa_config !== undefined && kasa_config !== null,
    tensors: { loraA: 'lora_A.weight', diag: 'lora_diag', loraB: 'lora_B.weight' },
    read: readAlpha,
    regenerate: (_, make) => ({ tensors: tailOf(make) }),
    write: (config) => ({ ...alphaFields(config), kasa_config: {} }),
  },
});
