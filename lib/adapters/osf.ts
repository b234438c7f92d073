import type { Value } from '../autograd/gradient-tape.js';
import type { Tape } from '../autograd/tape.js';
import type { Tensor } from '../core/tensor.js';
import { multiplyAdd } from '../ops/elementwise.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';
import { weightGrad } from '../ops/weight-grad.js';
import type { AdapterMaker } from './definition.js';
import { leadingTriplets } from './leading-triplets.js';
import { defineAdapter } from './method.js';
import { patternOf } from './scaling.js';

interface Settings {
  readonly rank: number;
}

const lowOf = (N: number, K: number, rank: number): number => Math.min(N, K) - rank;

/** The singular triplets of the base weight from `begin` up to `end`, of those before `last`, largest first. */
function triplets(make: AdapterMaker<Settings>, last: number) {
  const { N, K } = make;
  const { right, scaledLeft } = leadingTriplets(make.weight('osf'), last, 0);
  return (begin: number, end: number) => {
    const count = end - begin;
    const u = new Float32Array(N * count);
    const s = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const left = scaledLeft.subarray((begin + i) * N, (begin + i + 1) * N);
      const norm = Math.sqrt(left.reduce((sum, v) => sum + v * v, 0));
      s[i] = norm;
      for (let n = 0; n < N; n++) u[n * count + i] = norm === 0 ? 0 : (left[n] as number) / norm;
    }
    return { u, s, v: Float32Array.from(right.subarray(begin * K, end * K)) };
  };
}

/** As it is; its gradient loses what lies in the span of the columns of `high` [N, k]. */
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
 * Orthogonal subspace fine-tuning: the weight in its singular triplets, of which the `rank` largest stay as
 * they are and all others are trained, `y = x·(uHigh·diag(sHigh)·vHigh + uLow·diag(sLow)·vLow)ᵀ + bias`. Gradients of uLow
 * and vLow are projected to be orthogonal to the fixed vectors. The base weight itself takes no part, and
 * as many values are trained as it has: for learning tasks one after another, not for saving memory.
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
    const all = triplets(make, Math.min(N, K));
    const high = all(0, config.rank);
    const low = all(config.rank, Math.min(N, K));
    return {
      uLow: make.values('uLow', (i) => low.u[i] as number),
      sLow: make.values('sLow', (i) => low.s[i] as number),
      vLow: make.values('vLow', (i) => low.v[i] as number),
      uHigh: make.values('uHigh', (i) => high.u[i] as number),
      sHigh: make.values('sHigh', (i) => high.s[i] as number),
      vHigh: make.values('vHigh', (i) => high.v[i] as number),
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
    // A share of the ranks, or half of them, where the config has no number: what is stored tells it.
    read: ({ effective_rank, rank_pattern }, module, shapeOf) => {
      const high = shapeOf('sHigh')?.[0];
      return { rank: high ?? patternOf(rank_pattern, module) ?? Number(effective_rank) };
    },
    write: ({ rank }) => ({ effective_rank: rank }),
    regenerate: (_, make) => {
      const { rank } = make.config;
      const { u, s, v } = triplets(make, rank)(0, rank);
      return { tensors: { uHigh: u, sHigh: s, vHigh: v } };
    },
  },
});
