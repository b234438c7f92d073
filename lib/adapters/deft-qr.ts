import { Tape } from '../autograd/tape.js';
import { scope } from '../core/scope.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { matmulInputGrad } from '../ops/matmul.js';
import { defineAdapter } from './method.js';
import { columnMasks, orthonormalColumns } from './orthonormal.js';

/**
 * {@link deft} over an orthonormal basis q of the columns of p: `ΔW = q · (scaling · inject - qᵀ · w)`, which takes
 * exactly the subspace out. The basis is found in every step (Gram and Schmidt), and gradients go through
 * it; its signs are those of `torch.linalg.qr`, as `inject` depends on them.
 */
export const deftQr = defineAdapter({
  method: 'deft-qr',
  reference:
    'Kumar et al., DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models, 2025, arXiv:2509.22793',
  defaults: { r: 8, scaling: 1, dropout: 0 },
  trained: ['p', 'inject'],
  shapes: ({ N, K, config: { r } }) => ({ p: [N, r], inject: [r, K] }),
  init: (make) => {
    const { config, device, dtype } = make;
    const p = make.normal('p', 0.02);
    const w = make.weight('deft-qr.create');
    const inject = scope(() => {
      const tape = new Tape({ recording: false });
      const masks = columnMasks(config.r, device);
      const q = orthonormalColumns(tape, tape.own(p.to({ dtype: 'f32' })), masks);
      const taken = matmulInputGrad(tape.transpose(q).tensor, w);
      return multiplyAdd({ a: taken, alpha: 1 / config.scaling, dtype });
    });
    return { p, inject };
  },
  prepare: ({ config: { r }, device }) => columnMasks(r, device),
  check: ({ N, config: { r } }) =>
    r > 0 && r <= N ? undefined : ['r', `from 1 to N (${N})`, String(r)],
  forward: (t, { x, w, bias, p, state, config: { scaling, dropout } }) => {
    const q = orthonormalColumns(t, t.cast(p.p, 'f32'), state);
    const base = t.linear(x, w);
    const put = t.shrink(x, p.inject, { scaling, dropout });
    const taken = t.product(t.cast(base, 'f32'), q);
    const y = t.add(base, t.matmul(t.add(put, taken, 1, -1), q));
    return bias === undefined ? y : t.add(y, bias);
  },
  peft: {
    type: 'DEFT',
    when: ({ decomposition_method, para }) =>
      (decomposition_method ?? 'qr') === 'qr' && para !== true,
    tensors: { p: 'deft_P', inject: 'deft_R' },
    read: ({ r, alpha, deft_dropout }) => ({
      r: Number(r),
      scaling: typeof alpha === 'number' && alpha !== 0 ? alpha / Number(r) : 1,
      dropout: Number(deft_dropout ?? 0),
    }),
    write: ({ r, scaling, dropout }) => ({
      r,
      alpha: scaling * r,
      decomposition_method: 'qr',
      deft_dropout: dropout,
    }),
  },
});
