import { reflectionCore, reflectionMasks } from './householder.js';
import { defineAdapter } from './method.js';

/**
 * Householder reflections of the input: `y = (x · H_r … H_1)·wᵀ`, `H_i = I - 2 u_i u_iᵀ / |u_i|²`, from
 * the columns of hraU [K, r]. The chain is one update of rank r (the WY form):
 * `y = x·wᵀ - ((x·u)·Tᵀ)·(w·u)ᵀ`. Columns come in equal pairs, whose reflections cancel at the start;
 * with an odd r one is left over, and the start is that reflection of the base model.
 */
export const hra = defineAdapter({
  method: 'hra',
  reference:
    'Yuan et al., Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation, 2024, arXiv:2405.17484',
  defaults: { r: 8 },
  trained: ['hraU'],
  shapes: ({ K, config: { r } }) => ({ hraU: [K, r] }),
  init: (make) => {
    const { r } = make.config;
    const half = Math.ceil(r / 2);
    const drawn = make.kaiming('hraU', half).readSync();
    const hraU = make.values('hraU', (i) => {
      const column = r % 2 === 0 ? Math.floor((i % r) / 2) : i % r;
      return drawn[i - (i % r) + column] as number;
    });
    return { hraU };
  },
  prepare: ({ config, device }) => reflectionMasks(config.r, device),
  forward: (t, { x, w, bias, p, state }) => {
    const length = t.map(t.sum(t.map(p.hraU, 'square'), 0), 'rsqrt');
    const u = t.multiply(p.hraU, length);
    const rows = t.transpose(u);
    const h = t.matmul(t.shrink(x, rows), reflectionCore(t, u, state));
    const moved = t.transpose(t.linear(rows, w));
    return t.expand(x, w, h, moved, { scaling: -1, bias });
  },
  peft: {
    type: 'HRA',
    when: ({ apply_GS }) => apply_GS !== true,
    tensors: { hraU: 'hra_u' },
    read: ({ r }) => ({ r: Number(r ?? 8) }),
    write: ({ r }) => ({ r, apply_GS: false }),
  },
});
