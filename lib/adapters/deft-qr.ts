import { Tape } from '../autograd/tape.js';
import { scope } from '../core/scope.js';
import { multiplyAdd } from '../ops/elementwise.js';
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
import { columnMasks, orthonormalColumns } from './orthonormal.js';

/**
 * {@link deft} over an orthonormal basis q of the columns of p: `ΔW = q · (scaling · inject - qᵀ · w)`, which takes
 * exactly the subspace out. The basis is found in every step (Gram and Schmidt), and gradients go through
 * it; its signs are those of `torch.linalg.qr`, as `inject` depends on them. `para` as there.
 */
export const deftQr = defineAdapter({
  method: 'deft-qr',
  reference:
    'Kumar et al., DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models, 2025, arXiv:2509.22793',
  defaults: deftDefaults,
  trained: ['p', 'inject'],
  shapes: deftShapes,
  check: checkDeft,
  init: (make) => {
    const { config, device, dtype } = make;
    const alpha = startOf('deft-qr.create', config);
    const p = make.normal('p', 0.02);
    if (config.para) return { p };
    const w = make.weight('deft-qr.create');
    const inject = scope(() => {
      const tape = new Tape({ recording: false });
      const masks = columnMasks(config.r, device);
      const q = orthonormalColumns(tape, tape.own(p.to({ dtype: 'f32' })), masks);
      const taken = matmulInputGrad(tape.transpose(q).tensor, w);
      return multiplyAdd({ a: taken, alpha, dtype });
    });
    return { p, inject };
  },
  prepare: ({ config: { r }, device }) => columnMasks(r, device),
  forward: (t, call) => {
    const q = orthonormalColumns(t, t.cast(call.p.p, 'f32'), call.state);
    return exchange(t, call, q, q);
  },
  peft: {
    type: 'DEFT',
    when: ({ decomposition_method }) => (decomposition_method ?? 'qr') === 'qr',
    tensors: { p: 'deft_P', inject: 'deft_R' },
    read: (config, _module, _shapeOf, layer) => readDeft(config, layer),
    write: (config, modules, configs) => ({
      ...writeDeft(config, modules, configs),
      decomposition_method: 'qr',
    }),
  },
});
