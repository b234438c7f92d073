import { identity } from '../../../autograd/structured.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { defineAdapter } from '../../definition/method.js';
import { reflectionCore, reflectionMasks } from './householder.js';

/** Newton steps for the inverse of uᵀ·u: exact to f32 if its smallest eigenvalue is above 1e-5 · r. */
const NEWTON_STEPS = 24;

/**
 * Householder reflections of the input: `y = (x · H_r … H_1)·wᵀ`, `H_i = I - 2 u_i u_iᵀ / |u_i|²`,
 * from the columns of hraU [K, r]. The chain is one update of rank r (the WY form):
 * `y = x·wᵀ - ((x·u)·Tᵀ)·(w·u)ᵀ`. Columns come in equal pairs whose reflections cancel initially.
 * With an odd r one is left over, so training starts at one reflection of the base model.
 *
 * With `gramSchmidt` the columns are first orthogonalised by Gram-Schmidt. The chain is then
 * `I - 2 u (uᵀu)⁻¹ uᵀ`, for any basis of the columns' span. It is never the identity: such an adapter
 * starts from random columns, away from the base model.
 */
export const hra = defineAdapter({
  method: 'hra',
  reference:
    'Yuan et al., Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation, 2024, arXiv:2405.17484',
  defaults: { r: 8, gramSchmidt: false },
  trained: ['hraU'],
  shapes: ({ K, config: { r } }) => ({ hraU: [K, r] }),
  check: ({ K, config: { r, gramSchmidt } }) => {
    const most = gramSchmidt ? K : Number.POSITIVE_INFINITY;
    const expected = gramSchmidt ? `from 1 to K (${K}), with gramSchmidt` : 'at least 1';
    return r >= 1 && r <= most ? undefined : ['r', expected, String(r)];
  },
  init: (make) => {
    const { r, gramSchmidt } = make.config;
    if (gramSchmidt || r % 2 !== 0) return { hraU: make.kaiming('hraU') };
    const drawn = make.kaiming('hraU', r / 2).readSync();
    const hraU = make.values('hraU', (i) => {
      const column = Math.floor((i % r) / 2);
      return drawn[i - (i % r) + column] as number;
    });
    return { hraU };
  },
  prepare: ({ config, device }) => reflectionMasks(config.r, device),
  forward: (t, { x, w, bias, p, config, state }) => {
    const { r, gramSchmidt } = config;
    const length = t.map(t.sum(t.map(p.hraU, 'square'), 0), 'rsqrt');
    const u = t.multiply(p.hraU, length);
    const rows = t.transpose(u);
    const moved = t.transpose(t.linear(rows, w));
    const h = t.shrink(x, rows);
    if (!gramSchmidt) {
      const core = reflectionCore(t, u, state);
      return t.expand(x, w, t.matmul(h, core), moved, { scaling: -1, bias });
    }
    // The trace of uᵀ·u is r.
    const start = multiplyAdd({ a: identity(r, x.tensor.device), alpha: 1 / r });
    const gram = t.reshape(t.transposeProduct(u, u), [r, 1, r]);
    const inverse = t.blockInverse(gram, start.reshape([r, 1, r]), NEWTON_STEPS);
    const core = t.reshape(inverse, [r, r]);
    return t.expand(x, w, t.matmul(h, core), moved, { scaling: -2, bias });
  },
  peft: {
    type: 'HRA',
    tensors: { hraU: 'hra_u' },
    read: ({ r, apply_GS }) => ({ r: Number(r ?? 8), gramSchmidt: apply_GS === true }),
    write: ({ r, gramSchmidt }) => ({ r, apply_GS: gramSchmidt }),
  },
});
