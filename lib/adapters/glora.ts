import { denseUpdate } from '../autograd/dense-update.js';
import { denseRows, rowStep } from '../ops/dense-rows.js';
import { defineAdapter } from './method.js';

/**
 * Generalised LoRA, the form that PEFT trains: weight and bias are both rescaled and moved,
 * `y = x·(w + w ⊙ A + B)ᵀ + bias ⊙ (1 + d) + e + w·C` with A = aD·aU, B = bD·bU and C = cD·cU of rank r,
 * and d and e one value each (`vectors: false`) or one an output. Without a bias d does nothing.
 */
export const glora = defineAdapter({
  method: 'glora',
  reference:
    'Chavan et al., One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning, 2023, arXiv:2306.07967',
  defaults: { r: 4, vectors: false },
  trained: ['aD', 'aU', 'bD', 'bU', 'cD', 'cU', 'd', 'e'],
  shapes: ({ N, K, config: { r, vectors } }) => ({
    aD: [N, r],
    aU: [r, K],
    bD: [N, r],
    bU: [r, K],
    cD: [K, r],
    cU: [r, 1],
    d: [vectors ? N : 1],
    e: [vectors ? N : 1],
  }),
  init: (make) => ({
    aD: make.zeros('aD'),
    aU: make.kaiming('aU'),
    bD: make.zeros('bD'),
    bU: make.kaiming('bU'),
    cD: make.zeros('cD'),
    cU: make.kaiming('cU'),
    d: make.zeros('d'),
    e: make.zeros('e'),
  }),
  forward: (t, { x, w, bias, p, N, K }) => {
    const moved = t.expand(x, w, t.shrink(x, p.bU), p.bD, { bias });
    const scaled = denseUpdate(t, x, {
      N,
      step: rowStep(w),
      rows: { d: p.aD },
      inputs: { u: p.aU },
      tile: (tape, { d, u }, begin, end) =>
        tape.multiply(tape.product(d, u), tape.own(denseRows(w, begin, end))),
    });
    const c = t.reshape(t.product(p.cD, p.cU), [1, K]);
    let shift = t.add(t.reshape(t.linear(c, w), [N]), p.e);
    if (bias !== undefined) shift = t.add(shift, t.multiply(t.cast(bias, 'f32'), p.d));
    return t.add(t.add(moved, scaled), shift);
  },
  peft: {
    type: 'GLORA',
    when: ({ config_A_B, config_C, config_D_E }) =>
      (config_A_B ?? 'lora') === 'lora' &&
      (config_C ?? 'lora') === 'lora' &&
      (config_D_E ?? 'constant') !== 'none',
    tensors: {
      aD: 'glora_A.Xd',
      aU: 'glora_A.Xu',
      bD: 'glora_B.Xd',
      bU: 'glora_B.Xu',
      cD: 'glora_C.Xd',
      cU: 'glora_C.Xu',
      d: 'glora_D.X',
      e: 'glora_E.X',
    },
    read: ({ r, config_D_E }) => ({ r: Number(r ?? 4), vectors: config_D_E === 'vector' }),
    write: ({ r, vectors }) => ({
      r,
      config_A_B: 'lora',
      config_C: 'lora',
      config_D_E: vectors ? 'vector' : 'constant',
    }),
  },
});
