import { outsideScopes, scope } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { mapTensor } from '../ops/elementwise.js';
import { factoredNorm, weightNorms } from '../ops/factored-norm.js';
import { checkLayer, embeddingNames, kLinear, onesOf, readLayer, tapsOf } from './layer-kind.js';
import { defineAdapter } from './method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from './scaling.js';

/** ‖w‖² of each row, kept for every base weight that a layer is used with while both live. */
class NormCache implements Disposable {
  readonly #norms = new WeakMap<BaseWeight, Tensor>();
  #kept: { readonly weight: WeakRef<BaseWeight>; readonly norms: Tensor }[] = [];

  of(w: BaseWeight): Tensor {
    const known = this.#norms.get(w);
    if (known !== undefined) return known;
    this.#kept = this.#kept.filter(({ weight, norms }) => {
      const lives = weight.deref()?.disposed === false;
      if (!lives) norms.dispose();
      return lives;
    });
    // A forward pass is a scope, which frees what it does not return.
    const norms = outsideScopes(() => weightNorms(w));
    this.#norms.set(w, norms);
    this.#kept.push({ weight: new WeakRef(w), norms });
    return norms;
  }

  [Symbol.dispose](): void {
    for (const { norms } of this.#kept) norms.dispose();
  }
}

/**
 * Weight-decomposed LoRA: direction and magnitude apart,
 * `y = magnitude / ‖w'‖ ⊙ (x · w'ᵀ) + bias` with `w' = w + scaling · loraB · loraA` and the norm of each of its
 * rows, which is a constant in the backward pass, as in the paper (section 4.3) and in PEFT. With
 * dropout the whole adapter term sees the dropped input: `y = x·wᵀ + bias + (magnitude / ‖w'‖ − 1) ⊙ (x̃·wᵀ)
 * + magnitude / ‖w'‖ ⊙ scaling · (x̃ · loraAᵀ) · loraBᵀ`. `kernel` and `embedding` as in {@link lora}.
 */
export const dora = defineAdapter({
  method: 'dora',
  reference: 'Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, arXiv:2402.09353',
  defaults: {
    r: 8,
    loraAlpha: 16,
    rslora: false,
    dropout: 0,
    kernel: kLinear,
    embedding: false,
  },
  trained: ['loraA', 'loraB', 'magnitude'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], magnitude: [N] }),
  check: ({ K, config }) => checkLayer(config, K),
  init: (make) => ({
    ...(make.config.embedding
      ? { loraA: make.zeros('loraA'), loraB: make.normal('loraB', 1) }
      : { loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
    magnitude: scope(() => mapTensor(weightNorms(make.weight('dora.create')), 'sqrt')),
  }),
  prepare: () => new NormCache(),
  forward: (t, { x, w, bias, p, config, state, training }) => {
    const scaling = scalingOf(config);
    const { loraA, loraB } = p;
    const factors = { loraA: loraA.tensor, loraB: loraB.tensor, scaling };
    const { dtype } = x.tensor;
    const norm = factoredNorm({ w, ...factors, weightNorms: state.of(w), dtype });
    const share = t.multiply(p.magnitude, t.own(mapTensor(norm, 'reciprocal')));
    const dropout = training ? config.dropout : 0;
    if (dropout === 0) {
      const both = t.expand(x, w, t.shrink(x, loraA), loraB, { scaling });
      const y = t.multiply(both, share);
      return bias === undefined ? y : t.add(y, bias);
    }
    const dropped = t.dropout(x, dropout);
    // Before the product of the same input, whose gradient it takes along.
    const h = t.shrink(dropped, loraA, { scaling });
    const base = t.linear(dropped, w);
    const both = t.add(base, t.matmul(h, loraB));
    return t.add(t.add(t.linear(x, w, bias), base, 1, -1), t.multiply(both, share));
  },
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ use_dora }) => use_dora === true,
    tensors: {
      loraA: 'lora_A.weight',
      loraB: 'lora_B.weight',
      magnitude: 'lora_magnitude_vector',
    },
    otherNames: embeddingNames,
    fileShapes: ({ N, K, config }) => ({
      loraA: [config.r, K / tapsOf(config), ...config.kernel],
      loraB: [N, config.r, ...onesOf(config)],
      ...(config.kernel.length > 0 ? { magnitude: [1, N, ...onesOf(config)] } : {}),
    }),
    read: (config, module, _, layer) => ({ ...readAlpha(config, module), ...readLayer(layer) }),
    write: (config) => ({ ...alphaFields(config), use_dora: true }),
  },
});
