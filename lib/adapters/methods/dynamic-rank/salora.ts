import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { full } from '../../../core/full.js';
import { Tensor } from '../../../core/tensor.js';
import { mapTensor, multiplyAdd } from '../../../ops/elementwise.js';
import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/** Ends of the stretched interval from which a hard-concrete gate is clipped (Louizos et al., 2017). */
const LOW = -0.1;
const HIGH = 1.1;
const TEMPERATURE = 2 / 3;

/** The gate in [0, 1]: sampled with a seed, otherwise its midpoint. */
function hardConcrete(t: Tape, logAlpha: Value, seed: number | undefined): Value {
  const { device } = logAlpha.tensor;
  let s: Value;
  if (seed === undefined) {
    s = t.map(logAlpha, 'sigmoid');
  } else {
    const u = Tensor.uniform(logAlpha.shape, { seed, device, low: 2 ** -24, high: 1 - 2 ** -24 });
    const rest = multiplyAdd({ a: u, alpha: -1, c: full([1], 1, { device }) });
    const noise = multiplyAdd({ a: mapTensor(u, 'log'), c: mapTensor(rest, 'log'), beta: -1 });
    s = t.map(t.affine(t.add(logAlpha, t.own(noise)), 1 / TEMPERATURE), 'sigmoid');
  }
  const stretched = t.affine(s, HIGH - LOW, LOW);
  // Clip at 0 and 1.
  return t.add(t.map(stretched, 'relu'), t.map(t.affine(stretched, 1, -1), 'relu'), 1, -1);
}

/**
 * A stochastic gate on every rank decides how many a layer needs:
 * `y = x·wᵀ + scaling · ((x · loraAᵀ) ⊙ gate) · loraBᵀ`, with a hard-concrete gate that is sampled in
 * training. The trainer adds the L0 penalty on `logAlpha`.
 */
export const salora = defineAdapter({
  method: 'salora',
  reference:
    'Hu et al., Structure-Aware Low-Rank Adaptation for Parameter-Efficient Fine-Tuning, 2023, Mathematics 11(20):4317',
  defaults: { r: 8, loraAlpha: 16, rslora: false, dropout: 0 },
  trained: ['loraA', 'loraB', 'logAlpha'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], logAlpha: [r] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    logAlpha: make.full('logAlpha', 1),
  }),
  forward: (t, { x, w, bias, p, config, training, seed }) => {
    const gate = hardConcrete(t, p.logAlpha, training ? seed : undefined);
    const h = t.multiply(t.shrink(x, p.loraA, { dropout: config.dropout }), gate);
    return t.expand(x, w, h, p.loraB, { scaling: scalingOf(config), bias });
  },
});
