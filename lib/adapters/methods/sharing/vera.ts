import { TorchRandom } from '../../../checkpoint/random/torch-random.js';
import { leadingPart } from '../../definition/leading-part.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * Vector-based random matrix adaptation: `y = x·wᵀ + lambdaB ⊙ (B · (lambdaD ⊙ (A · x)))`. A and B are
 * random and frozen, shared by all layers; each layer trains two vectors.
 */
export const vera = defineAdapter({
  method: 'vera',
  reference: 'Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, 2023, arXiv:2310.11454',
  defaults: { r: 256, dInitial: 0.1, dropout: 0 },
  rate: 10,
  trained: ['lambdaB', 'lambdaD'],
  frozen: ['veraA', 'veraB'],
  shapes: ({ N, K, config: { r } }) => ({
    lambdaB: [N],
    lambdaD: [r],
    veraA: [r, K],
    veraB: [N, r],
  }),
  init: (make) => ({
    lambdaB: make.zeros('lambdaB'),
    lambdaD: make.full('lambdaD', make.config.dInitial),
    veraA: make.kaiming('veraA'),
    veraB: make.kaiming('veraB'),
  }),
  forward: (t, { x, w, bias, p, config }) => {
    const h = t.multiply(t.shrink(x, p.veraA, { dropout: config.dropout }), p.lambdaD);
    const update = t.multiply(t.matmul(h, p.veraB), p.lambdaB);
    return t.add(t.linear(x, w, bias), update);
  },
  peft: {
    type: 'VERA',
    tensors: { lambdaB: 'vera_lambda_b', lambdaD: 'vera_lambda_d' },
    shared: { veraA: 'vera_A', veraB: 'vera_B' },
    read: ({ r, d_initial, vera_dropout }) => ({
      r: Number(r),
      dInitial: Number(d_initial ?? 0.1),
      dropout: Number(vera_dropout ?? 0),
    }),
    regenerate: ({ projection_prng_key }, { N, K, config: { r } }, largest) => {
      const random = new TorchRandom(Number(projection_prng_key ?? 0));
      const shapes = { a: [r, largest.inFeatures], b: [largest.outFeatures, r] };
      // Drawn in this order from one stream.
      const [a, b] = [random.kaimingUniform(shapes.a, 0), random.kaimingUniform(shapes.b, 0)];
      const tensors = {
        veraA: leadingPart(a, shapes.a, [r, K]),
        veraB: leadingPart(b, shapes.b, [N, r]),
      };
      return { tensors };
    },
    write: ({ r, dInitial, dropout }) => ({ r, d_initial: dInitial, vera_dropout: dropout }),
  },
});
