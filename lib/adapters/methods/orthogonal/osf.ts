import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import type { Tensor } from '../../../core/tensor.js';
import { singularFactors } from '../../../linalg/tensors/triplets.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../../../ops/matmul.js';
import { weightGrad } from '../../../ops/weight-grad.js';
import { defineAdapter } from '../../definition/method.js';
import { patternOf } from '../../parts/scaling.js';

const lowOf = (N: number, K: number, rank: number): number => Math.min(N, K) - rank;

/** Returns u. Its gradient loses the part in the span of the columns of `high` [N, k]. */
function withinColumns(t: Tape, u: Value, high: Tensor): Value {
  return t.record(u.tensor, [u], [], (dy, pass) => {
    const inside = matmulInputGrad(high, weightGrad(high, dy));
    pass.give(u, multiplyAdd({ a: dy, c: inside, beta: -1 }));
  });
}

/** The same for rows: `high` [k, K]. */
function withinRows(t: Tape, v: Value, high: Tensor): Value {
  return t.record(v.tensor, [v], [], (dy, pass) => {
    const inside = matmulInputGrad(matmul(dy, high), high);
    pass.give(v, multiplyAdd({ a: dy, c: inside, beta: -1 }));
  });
}

/**
 * Orthogonal subspace fine-tuning: decomposes the weight into singular triplets, keeps the `rank` largest and trains all
 * others, `y = x·(uHigh·diag(sHigh)·vHigh + uLow·diag(sLow)·vLow)ᵀ + bias`. Gradients of uLow and vLow are projected to be
 * orthogonal to the fixed vectors. The base weight itself is not used, and as many values are trained as it has: for
 * learning one task after another, not for saving memory.
 *
 * A PEFT folder has only the trained triplets. The fixed ones are computed from the base weight again, by an exact
 * decomposition on the host in float64: a second for a layer of 512 features, minutes for one of 4,096. PEFT computes them
 * with LAPACK in f32, so they differ by its rounding.
 */
export const osf = defineAdapter({
  method: 'osf',
  reference:
    'Nayak et al., Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning, 2025, arXiv:2504.07097',
  defaults: { rank: 8 },
  trained: ['uLow', 'sLow', 'vLow'],
  frozen: ['uHigh', 'sHigh', 'vHigh'],
  shapes: ({ N, K, config: { rank } }) => {
    const low = lowOf(N, K, rank);
    return {
      uLow: [N, low],
      sLow: [low],
      vLow: [low, K],
      uHigh: [N, rank],
      sHigh: [rank],
      vHigh: [rank, K],
    };
  },
  init: (make) => {
    const { N, K, config } = make;
    const { rank } = config;
    const count = Math.min(N, K);
    const low = count - rank;
    const { u, s, v } = singularFactors(make.weight('osf.create'), count);
    const columns = (begin: number, width: number) => (i: number) =>
      u[Math.floor(i / width) * count + begin + (i % width)] as number;
    return {
      uLow: make.values('uLow', columns(rank, low)),
      sLow: make.values('sLow', (i) => s[rank + i] as number),
      vLow: make.values('vLow', (i) => v[rank * K + i] as number),
      uHigh: make.values('uHigh', columns(0, rank)),
      sHigh: make.values('sHigh', (i) => s[i] as number),
      vHigh: make.values('vHigh', (i) => v[i] as number),
    };
  },
  check: ({ N, K, config: { rank } }) =>
    rank > 0 && rank < Math.min(N, K)
      ? undefined
      : ['rank', `from 1 to ${Math.min(N, K) - 1}`, String(rank)],
  forward: (t, { x, bias, p }) => {
    const u = withinColumns(t, p.uLow, p.uHigh.tensor);
    const v = withinRows(t, p.vLow, p.vHigh.tensor);
    const low = t.matmul(t.multiply(t.shrink(x, v), p.sLow), u);
    const high = t.matmul(t.multiply(t.shrink(x, p.vHigh), p.sHigh), p.uHigh);
    const y = t.add(low, high);
    return t.cast(bias === undefined ? y : t.add(y, bias), x.tensor.dtype);
  },
  peft: {
    type: 'OSF',
    patterns: { effective_rank: 'rank_pattern' },
    tensors: {
      uLow: 'osf_svd_params.U_low',
      sLow: 'osf_svd_params.S_low',
      vLow: 'osf_svd_params.V_low',
      uHigh: '_osf_U_high',
      sHigh: '_osf_S_high',
      vHigh: '_osf_V_high',
    },
    // A fraction of the ranks, or half of them if the config has no number: the stored tensors
    // decide.
    read: ({ effective_rank, rank_pattern }, module, shapeOf, { inFeatures, outFeatures }) => {
      const low = shapeOf('sLow')?.[0];
      const rank = low === undefined ? undefined : Math.min(inFeatures, outFeatures) - low;
      return { rank: rank ?? patternOf(rank_pattern, module) ?? Number(effective_rank) };
    },
    write: ({ rank }) => ({ effective_rank: rank }),
    regenerate: (_, make) => {
      const { rank } = make.config;
      const { u, s, v } = singularFactors(make.weight('osf'), rank);
      return { tensors: { uHigh: u, sHigh: s, vHigh: v } };
    },
  },
});
