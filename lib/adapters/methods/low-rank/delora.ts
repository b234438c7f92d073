import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { scope } from '../../../core/scope.js';
import { mapTensor, sumProduct } from '../../../ops/elementwise.js';
import { dequantize } from '../../../ops/quantize.js';
import { QuantizedWeight } from '../../../quant/quantized-weight.js';
import { defineAdapter } from '../../definition/method.js';
import { patternOf } from '../../parts/scaling.js';

/** Squares of norms. Those below 1e-8 become 1e-8, without a gradient. */
function atLeast(t: Tape, squares: Value): Value {
  return t.affine(t.map(t.affine(squares, 1, -kLeastSquare), 'relu'), 1, kLeastSquare);
}
const kLeastSquare = 1e-8;

/**
 * Rank-one updates of bounded size: `y = x·wᵀ + Σᵢ lambda / (r · ‖aᵢ‖ · ‖bᵢ‖) · ((x ⊙ wNorm) · aᵢ) · bᵢ`
 * with aᵢ the rows of loraA and bᵢ the columns of loraB, whose norms count as at least 1e-4, and wNorm the column norms of
 * the initial w. loraB starts at zero, as in PEFT; the authors start from two random factors and subtract their update
 * from the weight.
 */
export const delora = defineAdapter({
  method: 'delora',
  reference:
    'Bini et al., DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation, 2025, arXiv:2503.18225',
  defaults: { r: 8, lambda: 15, dropout: 0 },
  trained: ['loraA', 'loraB', 'lambda'],
  frozen: ['wNorm'],
  shapes: ({ N, K, config: { r } }) => ({ loraA: [r, K], loraB: [N, r], lambda: [1], wNorm: [K] }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    lambda: make.full('lambda', make.config.lambda),
    wNorm: scope(() => {
      const w = make.weight('delora.create');
      const dense = w instanceof QuantizedWeight ? dequantize(w, { dtype: 'f32' }) : w;
      return mapTensor(sumProduct(dense, dense, { axis: 0 }), 'sqrt');
    }),
  }),
  forward: (t, { x, w, bias, p, config: { r, dropout } }) => {
    const a2 = atLeast(t, t.sum(t.map(p.loraA, 'square'), 1));
    const b2 = atLeast(t, t.sum(t.map(p.loraB, 'square'), 0));
    const norms = t.map(t.multiply(t.reshape(a2, [r]), b2), 'rsqrt');
    const strength = t.multiply(norms, p.lambda, 1 / r);
    const scaled = t.multiply(t.dropout(x, dropout), p.wNorm);
    const h = t.multiply(t.shrink(scaled, p.loraA), strength);
    return t.add(t.linear(x, w, bias), t.matmul(h, p.loraB));
  },
  peft: {
    type: 'DELORA',
    patterns: { r: 'rank_pattern' },
    tensors: {
      loraA: 'delora_A',
      loraB: 'delora_B',
      lambda: 'delora_lambda',
      wNorm: 'delora_w_norm',
    },
    read: ({ r, delora_lambda, module_dropout, rank_pattern }, module) => ({
      r: patternOf(rank_pattern, module) ?? Number(r),
      lambda: Number(delora_lambda ?? 15),
      dropout: Number(module_dropout ?? 0),
    }),
    write: ({ r, lambda, dropout }) => ({ r, delora_lambda: lambda, module_dropout: dropout }),
  },
});
