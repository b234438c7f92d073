import type { Value } from '../../../autograd/gradient-tape.js';
import { identity } from '../../../autograd/structured.js';
import type { Tape } from '../../../autograd/tape.js';
import { fail } from '../../../core/errors.js';
import { scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import { leadingTriplets } from '../../../linalg/tensors/triplets.js';
import { defineAdapter } from '../../definition/method.js';
import { cayley, cayleySeries, skew, triangleMaps } from './rotation.js';

/** The entries of Q, shrunk if its Frobenius norm exceeds eps; 0: unchanged. */
function bounded(t: Tape, entries: Value, eps: number): Value {
  if (eps <= 0) return entries;
  // An offset far below f32's last place of eps², so that the root has a derivative at zero.
  const squares = t.affine(t.sum(t.map(entries, 'square'), 1), 2, 1e-24);
  const beyond = t.map(t.affine(t.map(squares, 'sqrt'), 1 / eps, -1), 'relu');
  return t.multiply(entries, t.reshape(t.map(t.affine(beyond, 1, 1), 'reciprocal'), [1]));
}

/**
 * A rotation in the principal subspace of the base weight:
 * `y = x·wᵀ + loraAlpha / r · (x · loraAᵀ)·(R' - I)ᵀ·loraBᵀ`, where loraB · loraA are the r leading singular triplets of w,
 * frozen, and `R' = vectorB ⊙ R ⊙ vectorA` (rows, columns). R [r, r] is the Cayley transform `(I + Q)(I - Q)⁻¹` of the
 * skew-symmetric matrix with the entries `weight` above its diagonal, row by row, or with `terms` above 0 that many terms of its
 * series, for which the norm of Q is limited to `eps` (0: free). Without `orthogonal`, R is `weight` itself; without `scaleA` or
 * `scaleB` that vector is absent. A PEFT folder has no factors, but the rotation depends on their signs: give them together with
 * its tensors.
 */
export const psoft = defineAdapter({
  method: 'psoft',
  reference:
    'Wu et al., Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation, 2025, arXiv:2505.11235',
  defaults: {
    r: 32,
    loraAlpha: 32,
    terms: 0,
    eps: 0,
    orthogonal: true,
    scaleA: true,
    scaleB: true,
    dropout: 0,
  },
  trained: ['weight', 'vectorA', 'vectorB'],
  frozen: ['loraA', 'loraB'],
  shapes: ({ N, K, config: { r, orthogonal, scaleA, scaleB } }) => ({
    weight: orthogonal ? [(r * (r - 1)) / 2] : [r, r],
    ...(scaleA ? { vectorA: [r] } : {}),
    ...(scaleB ? { vectorB: [r] } : {}),
    loraA: [r, K],
    loraB: [N, r],
  }),
  check: ({ N, K, config: { r } }) =>
    r >= 1 && r <= Math.min(N, K) ? undefined : ['r', `from 1 to ${Math.min(N, K)}`, String(r)],
  init: (make) => {
    const { N, K, config, device, dtype } = make;
    const { r, loraAlpha, orthogonal, scaleA, scaleB } = config;
    if (loraAlpha === 0) {
      const expected = 'other than 0 (the initial loraB is divided by it)';
      fail('ERR_VALUE', 'psoft.create', 'loraAlpha', expected, '0');
    }
    const { right, scaledLeft } = leadingTriplets(make.weight('psoft.create'), r, make.seed());
    const shrink = r / loraAlpha;
    const loraB = Float32Array.from({ length: N * r }, (_, at) => {
      const [n, i] = [Math.floor(at / r), at % r];
      return shrink * (scaledLeft[i * N + n] as number);
    });
    return {
      weight: orthogonal ? make.zeros('weight') : scope(() => identity(r, device).to({ dtype })),
      ...(scaleA ? { vectorA: make.full('vectorA', 1) } : {}),
      ...(scaleB ? { vectorB: make.full('vectorB', 1) } : {}),
      loraA: Tensor.from(Float32Array.from(right), [r, K], { device, dtype }),
      loraB: Tensor.from(loraB, [N, r], { device, dtype }),
    };
  },
  prepare: ({ config, device }) => triangleMaps(1, config.r, device),
  forward: (t, { x, w, bias, p, config, state }) => {
    const { r, loraAlpha, terms, eps, orthogonal, scaleA, scaleB, dropout } = config;
    const rotation = () =>
      terms > 0
        ? cayleySeries(t, skew(t, bounded(t, p.weight, eps), state), state, terms)
        : cayley(t, skew(t, p.weight, state, -1), state);
    let turn = t.reshape(orthogonal ? rotation() : p.weight, [r, r]);
    if (scaleA) turn = t.multiply(turn, p.vectorA);
    if (scaleB) turn = t.multiply(turn, t.reshape(p.vectorB, [r, 1]));
    const core = t.add(turn, t.reshape(t.constant(state.eye), [r, r]), 1, -1);
    const h = t.matmul(t.shrink(x, p.loraA, { dropout }), core);
    return t.expand(x, w, h, p.loraB, { scaling: loraAlpha / r, bias });
  },
  peft: {
    type: 'PSOFT',
    tensors: {
      weight: 'psoft_R.weight',
      vectorA: 'psoft_R.vector_a',
      vectorB: 'psoft_R.vector_b',
      loraA: '_psoft_A_cache',
      loraB: '_psoft_B_cache',
    },
    caveat: () =>
      'PEFT computes loraA and loraB itself, by an SVD of the base weight whose signs are arbitrary. The rotation depends on ' +
      'them: where a sign differs from the one here, PEFT computes something else',
    // Their signs are arbitrary, and the rotation depends on them.
    required: ['loraA', 'loraB'],
    read: (config) => ({
      r: Number(config.r ?? 32),
      loraAlpha: Number(config.psoft_alpha ?? 32),
      terms: config.use_cayley_neumann === true ? Number(config.num_cayley_neumann_terms ?? 5) : 0,
      eps: Number(config.cayley_neumann_eps ?? 0),
      orthogonal: config.psoft_orth !== false,
      scaleA: config.psoft_mag_a !== false,
      scaleB: config.psoft_mag_b !== false,
      dropout: Number(config.psoft_dropout ?? 0),
    }),
    write: ({ r, loraAlpha, terms, eps, orthogonal, scaleA, scaleB, dropout }) => ({
      r,
      psoft_alpha: loraAlpha,
      use_cayley_neumann: terms > 0,
      num_cayley_neumann_terms: terms > 0 ? terms : 5,
      cayley_neumann_eps: eps > 0 ? eps : null,
      psoft_mag_a: scaleA,
      psoft_mag_b: scaleB,
      psoft_orth: orthogonal,
      psoft_dropout: dropout,
    }),
  },
});
