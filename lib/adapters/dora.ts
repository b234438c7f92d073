import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { mapTensor, multiplyAdd, sumProduct } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { dequantize, QuantizedWeight } from '../quant/quantized-weight.js';
import { defineAdapter } from './method.js';
import { alphaFields, readAlpha, scalingOf } from './scaling.js';

/** ‖w‖² of each row, kept for every base weight that a layer is used with. */
class NormCache implements Disposable {
  readonly all: Tensor[] = [];
  readonly #norms = new WeakMap<BaseWeight, Tensor>();

  of(w: BaseWeight): Tensor {
    const known = this.#norms.get(w);
    if (known !== undefined && !known.disposed) return known;
    const norms = scope(() => {
      const dense = w instanceof QuantizedWeight ? dequantize(w, { dtype: 'f32' }) : w;
      return sumProduct(dense, dense, { axis: 1 });
    });
    this.#norms.set(w, norms);
    this.all.push(norms);
    return norms;
  }

  [Symbol.dispose](): void {
    for (const tensor of this.all) tensor.dispose();
  }
}

/** `1 / ‖w + scaling · loraB · loraA‖` of each row [N], without the product of the factors. */
function reciprocalNorms(
  norms: Tensor,
  w: BaseWeight,
  loraA: Tensor,
  loraB: Tensor,
  scaling: number,
): Tensor {
  return scope(() => {
    const { device } = w;
    const r = loraA.shape[0] as number;
    const eye = Float32Array.from({ length: r * r }, (_, i) => (i % (r + 1) === 0 ? 1 : 0));
    const bT = matmul(Tensor.from(eye, [r, r], { device }), loraB.to({ dtype: 'f32' }));
    const cross = sumProduct(matmul(loraA, w), bT, { axis: 0 });
    const gram = sumProduct(matmul(loraB, matmul(loraA, loraA)), loraB, { axis: 1 });
    const first = multiplyAdd({ a: cross, c: norms, alpha: 2 * scaling });
    const sum = multiplyAdd({ a: gram, c: first, alpha: scaling ** 2 });
    return mapTensor(sum, 'rsqrt');
  });
}

/**
 * Weight-decomposed LoRA: direction and magnitude apart,
 * `y = magnitude / ‖w'‖ ⊙ (x · w'ᵀ) + bias` with `w' = w + scaling · loraB · loraA` and the norm of each of its
 * rows, which is a constant in the backward pass, as in the paper (section 4.3) and in PEFT. With
 * dropout the whole adapter term sees the dropped input: `y = x·wᵀ + bias + (magnitude / ‖w'‖ − 1) ⊙ (x̃·wᵀ)
 * + magnitude / ‖w'‖ ⊙ scaling · (x̃ · loraAᵀ) · loraBᵀ`.
 */
export const dora = defineAdapter({
  method: 'dora',
  reference: 'Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, arXiv:2402.09353',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'loraB', 'magnitude'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], magnitude: [N] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    magnitude: scope(() => {
      const cache = new NormCache();
      return mapTensor(cache.of(make.weight('dora.create')), 'sqrt');
    }),
  }),
  prepare: () => new NormCache(),
  forward: (t, { x, w, bias, p, config, state, training }) => {
    const scaling = scalingOf(config);
    const { loraA, loraB } = p;
    const constant = reciprocalNorms(state.of(w), w, loraA.tensor, loraB.tensor, scaling);
    const share = t.multiply(p.magnitude, t.own(constant));
    const dropout = training ? config.dropout : 0;
    if (dropout === 0) {
      const both = t.expand(x, w, t.shrink(x, loraA), loraB, { scaling });
      const y = t.multiply(both, share);
      return bias === undefined ? y : t.add(y, bias);
    }
    const dropped = t.dropout(x, dropout);
    const both = t.expand(dropped, w, t.shrink(dropped, loraA), loraB, { scaling });
    const base = t.add(t.linear(x, w, bias), t.linear(dropped, w), 1, -1);
    return t.add(base, t.multiply(both, share));
  },
  peft: {
    type: 'LORA',
    when: ({ use_dora }) => use_dora === true,
    tensors: {
      loraA: 'lora_A.weight',
      loraB: 'lora_B.weight',
      magnitude: 'lora_magnitude_vector',
    },
    read: readAlpha,
    write: (config) => ({ ...alphaFields(config), use_dora: true }),
  },
});
