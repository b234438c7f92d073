import { defineAdapter } from './method.js';

/**
 * A Tucker-2 tensor over the layers: `y = x·wᵀ + scaling · ((x · vᵀ) · coreᵀ) · uᵀ` with `u` and `v`
 * shared by all layers and one r × r `core` a layer. To share, give the same `u` and `v` to every
 * layer's `from` and add their gradients.
 */
export const lotr = defineAdapter({
  method: 'lotr',
  reference: 'Bershatsky et al., LoTR: Low Tensor Rank Weight Adaptation, 2024, arXiv:2402.01376',
  defaults: { r: 16, scaling: 1, dropout: 0 },
  trained: ['v', 'core', 'u'],
  shapes: ({ N, K, config: { r } }) => ({ v: [r, K], core: [r, r], u: [N, r] }),
  init: (make) => ({
    v: make.kaiming('v'),
    core: make.kaiming('core'),
    u: make.zeros('u'),
  }),
  forward: (t, { x, w, bias, p, config: { scaling, dropout } }) =>
    t.expand(x, w, t.matmul(t.shrink(x, p.v, { dropout }), p.core), p.u, { scaling, bias }),
  update: ({ v, core, u }, { scaling }) => ({ loraA: v, loraB: u, core, scaling }),
});
