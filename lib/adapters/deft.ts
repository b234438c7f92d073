import { Tape } from '../autograd/tape.js';
import { scope } from '../core/scope.js';
import { mapTensor, multiplyAdd } from '../ops/elementwise.js';
import { matmulInputGrad } from '../ops/matmul.js';
import {
  checkDeft,
  deftDefaults,
  deftShapes,
  exchange,
  readDeft,
  startOf,
  writeDeft,
} from './deft-config.js';
import { defineAdapter } from './method.js';

/**
 * A subspace of the outputs is taken out and something else put in:
 * `ΔW = p · (scaling · inject - relu(p)ᵀ · w)` with p [N, r] and inject [r, K], that is
 * `y = x·wᵀ + (scaling · x·injectᵀ - (x·wᵀ)·relu(p)) · pᵀ`. At the start inject is what is taken out.
 * With `para` nothing is put in (PaRa, Chen et al., 2024, arXiv:2406.05641): p alone is trained, and the start is
 * not the base model.
 *
 * This is the variant whose projector is `p · relu(p)ᵀ`; {@link deftQr} is the one over an orthonormal
 * basis of p.
 */
export const deft = defineAdapter({
  method: 'deft',
  reference:
    'Kumar et al., DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models, 2025, arXiv:2509.22793',
  defaults: deftDefaults,
  trained: ['p', 'inject'],
  shapes: deftShapes,
  check: checkDeft,
  init: (make) => {
    const alpha = startOf('deft.create', make.config);
    const p = make.normal('p', 0.02);
    if (make.config.para) return { p };
    const w = make.weight('deft.create');
    const inject = scope(() => {
      const tape = new Tape({ recording: false });
      const rows = tape.transpose(tape.own(mapTensor(p, 'relu', { dtype: 'f32' })));
      const taken = matmulInputGrad(rows.tensor, w);
      return multiplyAdd({ a: taken, alpha, dtype: make.dtype });
    });
    return { p, inject };
  },
  forward: (t, call) => exchange(t, call, t.map(call.p.p, 'relu'), call.p.p),
  peft: {
    type: 'DEFT',
    when: ({ decomposition_method }) => decomposition_method === 'relu',
    tensors: { p: 'deft_P', inject: 'deft_R' },
    read: (config, _module, _shapeOf, layer) => readDeft(config, layer),
    write: (config, modules, configs) => ({
      ...writeDeft(config, modules, configs),
      decomposition_method: 'relu',
    }),
  },
});
