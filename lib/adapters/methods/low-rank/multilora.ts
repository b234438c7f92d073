import { defineAdapter } from '../../definition/method.js';

/**
 * Several parallel adapters of small rank, each with its own scale for every output, so that no
 * direction dominates: `y = x·wᵀ + Σᵢ scaleᵢ ⊙ ((x · loraAᵢᵀ) · loraBᵢᵀ)`.
 */
export const multilora = defineAdapter({
  method: 'multilora',
  reference:
    'Wang et al., MultiLoRA: Democratizing LoRA for Better Multi-Task Learning, 2023, arXiv:2311.11501',
  defaults: { n: 3, r: 8, dropout: 0 },
  trained: ['loraA', 'loraB', 'scale'],
  // Adapter by adapter: [n · r, K], [n · N, r], [n, N].
  shapes: ({ N, K, config: { n, r } }) => ({
    loraA: [n * r, K],
    loraB: [n * N, r],
    scale: [n, N],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.kaiming('loraB'),
    scale: make.zeros('scale'),
  }),
  forward: (t, { x, w, bias, p, config: { n, r, dropout }, N }) => {
    const h = t.shrink(x, p.loraA, { dropout });
    const flatB = t.reshape(p.loraB, [1, n * N * r]);
    const flatScale = t.reshape(p.scale, [1, n * N]);
    let y = t.linear(x, w, bias);
    for (let i = 0; i < n; i++) {
      const b = t.reshape(t.slice(flatB, i * N * r, (i + 1) * N * r), [N, r]);
      const scale = t.reshape(t.slice(flatScale, i * N, (i + 1) * N), [N]);
      const own = t.matmul(t.slice(h, i * r, (i + 1) * r), b);
      y = t.add(y, t.multiply(own, scale));
    }
    return y;
  },
});
