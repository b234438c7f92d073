import { defineAdapter } from '../../definition/method.js';

/**
 * A Tucker-2 tensor over the layers: `y = x·wᵀ + scale / r · ((x · vᵀ) · coreᵀ) · uᵀ`, with v [r, K] and u [N, r]
 * shared by the layers of one size, and one core [r, r] per layer.
 *
 * Scale and initial values are those of the authors' program (github.com/daskol/lotr), which divides its scale by the rank,
 * and draws u and v from a normal distribution around a core of zeros. {@link AdapterMethod.createAll} makes layers that
 * share.
 */
export const lotr = defineAdapter({
  method: 'lotr',
  reference: 'Bershatsky et al., LoTR: Low Tensor Rank Weight Adaptation, 2024, arXiv:2402.01376',
  defaults: { r: 16, scale: 1, dropout: 0 },
  trained: ['v', 'core', 'u'],
  shared: { v: 'size', u: 'size' },
  shapes: ({ N, K, config: { r } }) => ({ v: [r, K], core: [r, r], u: [N, r] }),
  init: (make) => ({
    v: make.normal('v', 1),
    core: make.zeros('core'),
    u: make.normal('u', 1),
  }),
  forward: (t, { x, w, bias, p, config: { r, scale, dropout } }) => {
    const h = t.matmul(t.shrink(x, p.v, { dropout }), p.core);
    return t.expand(x, w, h, p.u, { scaling: scale / r, bias });
  },
  update: ({ v, core, u }, { r, scale }) => ({ loraA: v, loraB: u, core, scaling: scale / r }),
});
