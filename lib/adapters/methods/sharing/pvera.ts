import { TorchRandom } from '../../../checkpoint/random/torch-random.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { leadingPart } from '../../definition/leading-part.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * VeRA with a random middle: `y = x·wᵀ + lambdaB ⊙ (B · z)`, with z drawn from a normal distribution whose
 * mean and log-variance are the halves of `lambdaD ⊙ (A · x)`. In training with a seed, z is drawn; without a
 * seed, in evaluation and after merging, it is its mean.
 */
export const pvera = defineAdapter({
  method: 'pvera',
  reference:
    'Fillioux et al., PVeRA: Probabilistic Vector-Based Random Matrix Adaptation, 2025, arXiv:2512.07703',
  defaults: { r: 256, dInitial: 0.1, dropout: 0 },
  trained: ['lambdaB', 'lambdaD'],
  frozen: ['veraA', 'veraB'],
  shapes: ({ N, K, config: { r } }) => ({
    lambdaB: [N],
    lambdaD: [2 * r],
    veraA: [2 * r, K],
    veraB: [N, r],
  }),
  init: (make) => ({
    lambdaB: make.zeros('lambdaB'),
    lambdaD: make.full('lambdaD', make.config.dInitial),
    veraA: make.kaiming('veraA'),
    veraB: make.kaiming('veraB'),
  }),
  prepare: ({ config: { r }, device }) => ({
    mean: FeatureMap.slice(2 * r, 0, r, { device }),
    spread: FeatureMap.slice(2 * r, r, 2 * r, { device }),
  }),
  forward: (t, { x, w, bias, p, state, training, config: { dropout } }) => {
    const h = t.multiply(t.shrink(x, p.veraA, { dropout }), p.lambdaD);
    const mean = t.features(h, state.mean);
    const noise = training ? t.noise(mean.shape, mean.tensor.device) : undefined;
    const z =
      noise === undefined
        ? mean
        : t.add(mean, t.multiply(t.map(t.affine(t.features(h, state.spread), 0.5), 'exp'), noise));
    return t.add(t.linear(x, w, bias), t.multiply(t.matmul(z, p.veraB), p.lambdaB));
  },
  peft: {
    type: 'PVERA',
    tensors: { lambdaB: 'pvera_lambda_b', lambdaD: 'pvera_lambda_d' },
    shared: { veraA: 'pvera_A', veraB: 'pvera_B' },
    read: ({ r, d_initial, pvera_dropout }) => ({
      r: Number(r),
      dInitial: Number(d_initial ?? 0.1),
      dropout: Number(pvera_dropout ?? 0),
    }),
    write: ({ r, dInitial, dropout }) => ({ r, d_initial: dInitial, pvera_dropout: dropout }),
    regenerate: ({ projection_prng_key }, { N, K, config: { r } }, largest) => {
      const random = new TorchRandom(Number(projection_prng_key ?? 0));
      const shapes = { a: [2 * r, largest.inFeatures], b: [largest.outFeatures, r] };
      const [a, b] = [random.kaimingUniform(shapes.a, 0), random.kaimingUniform(shapes.b, 0)];
      const tensors = {
        veraA: leadingPart(a, shapes.a, [2 * r, K]),
        veraB: leadingPart(b, shapes.b, [N, r]),
      };
      return { tensors };
    },
  },
});
