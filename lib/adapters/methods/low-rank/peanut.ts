import { baseProduct } from '../../../autograd/base-product.js';
import type { Value } from '../../../autograd/gradient-tape.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';
import { activations } from './activations.js';

/** A larger depth would be a mistake, or a file made to exhaust the memory. */
const kMostLayers = 256;

/**
 * A small neural network over the base weight computes the update: `y = x·wᵀ + scaling · (x · hᵀ) · bᵀ`
 * with `h = f(a · w)` [r, K], a [r, N], b [N, r] and the activation f. It has rank r, but is not linear in
 * the factors.
 *
 * With a `depth`, h passes through as many encoders and decoders, [depth, r, r] each, with residuals between them:
 * `h₀ = f(a · w)`, `hᵢ₊₁ = f(encoderᵢ · hᵢ)`, then from `g = h_depth` on, decoder by decoder,
 * `g ← f(decoderᵢ · g) + h_(depth − 1 − i)`. `activation` is any name that transformers has (`relu`, `gelu`, `silu`,
 * ...).
 */
export const peanut = defineAdapter({
  method: 'peanut',
  reference:
    'Zhong et al., PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers, 2024, arXiv:2410.01870',
  defaults: { r: 32, scaling: 1, activation: 'relu', depth: 0 },
  trained: ['a', 'encoders', 'decoders', 'b'],
  shapes: ({ N, config: { r, depth } }) => ({
    a: [r, N],
    ...(depth > 0 ? { encoders: [depth, r, r], decoders: [depth, r, r] } : {}),
    b: [N, r],
  }),
  init: (make) => ({
    a: make.kaiming('a'),
    ...(make.config.depth > 0
      ? { encoders: make.kaiming('encoders'), decoders: make.kaiming('decoders') }
      : {}),
    b: make.zeros('b'),
  }),
  check: ({ config: { activation, depth } }) => {
    if (!Number.isInteger(depth) || depth < 0 || depth > kMostLayers) {
      return ['depth', `an integer from 0 to ${kMostLayers}`, String(depth)];
    }
    return Object.hasOwn(activations, activation)
      ? undefined
      : ['activation', `one of ${Object.keys(activations).join(', ')}`, `"${activation}"`];
  },
  prepare: ({ config: { r, depth }, device }) => {
    const size = r * r;
    return Array.from({ length: depth }, (_, i) =>
      FeatureMap.slice(depth * size, i * size, (i + 1) * size, { device }),
    );
  },
  forward: (t, { x, w, bias, p, state, config: { r, scaling, activation, depth } }) => {
    const f = activations[activation] as (typeof activations)[string];
    const layers = (stack: Value): Value[] => {
      const flat = t.reshape(stack, [1, depth * r * r]);
      return state.map((map) => t.reshape(t.features(flat, map), [r, r]));
    };
    let hidden = f(t, baseProduct(t, p.a, w));
    if (depth > 0) {
      const before: Value[] = [];
      for (const encoder of layers(p.encoders)) {
        before.push(hidden);
        hidden = f(t, t.product(encoder, hidden));
      }
      for (const decoder of layers(p.decoders)) {
        hidden = t.add(f(t, t.product(decoder, hidden)), before.pop() as Value);
      }
    }
    return t.expand(x, w, t.shrink(x, hidden), p.b, { scaling, bias });
  },
  peft: {
    type: 'PEANUT',
    tensors: { a: 'peanut_A.weight', b: 'peanut_B.weight' },
    stacks: {
      encoders: (i) => `peanut_encoders.${i}.weight`,
      decoders: (i) => `peanut_decoders.${i}.weight`,
    },
    read: ({ r, scaling, act_fn, depth }) => ({
      r: Number(r ?? 32),
      scaling: Number(scaling ?? 1),
      activation: String(act_fn ?? 'relu'),
      depth: Number(depth ?? 0),
    }),
    write: ({ r, scaling, activation, depth }) => ({ r, depth, scaling, act_fn: activation }),
  },
});
