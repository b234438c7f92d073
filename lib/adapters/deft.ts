import { Tape } from '../autograd/tape.js';
import { scope } from '../core/scope.js';
import { mapTensor, multiplyAdd } from '../ops/elementwise.js';
import { matmulInputGrad } from '../ops/matmul.js';
import { defineAdapter } from './method.js';

/**
 * A subspace of the outputs is taken out and something else put in:
 * `ΔW = p · (scaling · inject - relu(p)ᵀ · w)` with p [N, r] and inject [r, K], that is
 * `y = x·wᵀ + (scaling · x·injectᵀ - (x·wᵀ)·relu(p)) · pᵀ`. At the start inject is what is taken out.
 *
 * This is the variant whose projector is `p · relu(p)ᵀ`; {@link deftQr} is the one over an orthonormal
 * basis of p.
 */
export const deft = defineAdapter({
  method: 'deft',
  reference:
    'Kumar et al., DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models, 2025, arXiv:2509.22793',
  defaults: { r: 8, scaling: 1, dropout: 0 },
  trained: ['p', 'inject'],
  shapes: ({ N, K, config: { r } }) => ({ p: [N, r], inject: [r, K] }),
  init: (make) => {
    const p = make.normal('p', 0.02);
    const w = make.weight('deft.create');
    const inject = scope(() => {
      const tape = new Tape({ recording: false });
      const rows = tape.transpose(tape.own(mapTensor(p, 'relu', { dtype: 'f32' })));
      const taken = matmulInputGrad(rows.tensor, w);
      return multiplyAdd({ a: taken, alpha: 1 / make.config.scaling, dtype: make.dtype });
    });
    return { p, inject };
  },
  forward: (t, { x, w, bias, p, config: { scaling, dropout } }) => {
    const base = t.linear(x, w);
    const put = t.shrink(x, p.inject, { scaling, dropout });
    const taken = t.product(t.cast(base, 'f32'), t.map(p.p, 'relu'));
    const y = t.add(base, t.matmul(t.add(put, taken, 1, -1), p.p));
    return bias === undefined ? y : t.add(y, bias);
  },
  peft: {
    type: 'DEFT',
    when: ({ decomposition_method, para }) => decomposition_method === 'relu' && para !== true,
    tensors: { p: 'deft_P', inject: 'deft_R' },
    read: ({ r, alpha, deft_dropout }) => ({
      r: Number(r),
      scaling: typeof alpha === 'number' && alpha !== 0 ? alpha / Number(r) : 1,
      dropout: Number(deft_dropout ?? 0),
    }),
    write: ({ r, scaling, dropout }) => ({
      r,
      alpha: scaling * r,
      decomposition_method: 'relu',
      deft_dropout: dropout,
    }),
  },
});
