// LoRA with a gate for every token: the layer itself decides how much of the adapter a token sees.
//
//   y = x·wᵀ + scaling · σ(x · gateᵀ) · (x · loraAᵀ) · loraBᵀ
import { defineAdapter } from 'lowrank';

export default defineAdapter({
  method: 'gated-lora',
  reference: 'nobody: an example of a method of one’s own',
  defaults: { r: 8, loraAlpha: 16, dropout: 0 },
  trained: ['loraA', 'loraB', 'gate'],
  mergeable: false, // y is no affine function of x
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], gate: [1, K] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    gate: make.zeros('gate'),
  }),
  forward: (t, { x, w, bias, p, config: { r, loraAlpha, dropout } }) => {
    const open = t.map(t.shrink(x, p.gate), 'sigmoid'); // [..., 1]
    const h = t.multiply(t.shrink(x, p.loraA, { dropout }), open);
    return t.expand(x, w, h, p.loraB, { scaling: loraAlpha / r, bias });
  },
});
