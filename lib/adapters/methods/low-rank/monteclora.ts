import type { Value } from '../../../autograd/gradient-tape.js';
import { RouterMaps, softmax } from '../../../autograd/routing.js';
import { identity } from '../../../autograd/structured.js';
import { Tape } from '../../../autograd/tape.js';
import { wrongType } from '../../../core/errors.js';
import { scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import { checkInteger, readOptions } from '../../../core/validate.js';
import { logGamma } from '../../../linalg/gamma.js';
import { multiplyAdd, sumProduct } from '../../../ops/elementwise.js';
import { Adapter } from '../../definition/adapter.js';
import type { AdapterMaker } from '../../definition/maker.js';
import { defineAdapter } from '../../definition/method.js';
import { alphaFields, kAlphaPatterns, readAlpha, scalingOf } from '../../parts/scaling.js';

interface MontecloraConfig {
  readonly r: number;
  readonly loraAlpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
  /** Number of samples that a draw mixes. */
  readonly samples: number;
  readonly sampleScaler: number;
  /** For {@link montecloraLoss}: the weight of its divergences, */
  readonly klLossWeight: number;
  /** the concentration of the prior for the mixture's weights, */
  readonly dirichletPrior: number;
  /** and whether the sum of the squared weights is added. */
  readonly useEntropy: boolean;
}

/** Smallest variance and smallest concentration. */
const MIN_VARIANCE = 1e-3;
const MIN_ALPHA = 1e-6;

/** Separates the seeds of one pass from each other and from those of its dropouts. */
const SEED_STRIDE = 0x85ebca6b;

const drawn = (shape: readonly number[], seed: number, turn: number, device: Tensor['device']) =>
  Tensor.randn(shape, { seed: (seed + (turn + 1) * SEED_STRIDE) % 2 ** 53, device });

/** `max(a, least)` */
const atLeast = (t: Tape, a: Value, least: number): Value =>
  t.affine(t.map(t.affine(a, 1, -least), 'relu'), 1, least);

/** What a seed draws, as a function of the trained priors. */
interface Sample {
  /** [r], for the rows of the factors */
  readonly variance: Value;
  /** [1, samples], summing to 1 */
  readonly weights: Value;
}

/**
 * The diagonal of a Wishart variable with r degrees of freedom and scale `exp(2 · stdPrior)`, whose entries
 * are sums of r squared normals each; and a Dirichlet variable of concentration `exp(expertPrior)`, as the
 * softmax of a normal one (Laplace's approximation).
 */
function draw(
  t: Tape,
  stdPrior: Value,
  expertPrior: Value,
  maps: RouterMaps,
  seed: number,
): Sample {
  const { device } = stdPrior.tensor;
  const [r = 0, n = 0] = [stdPrior.tensor.size, expertPrior.tensor.size];
  const normals = drawn([r, r], seed, 0, device);
  const squares = t.own(sumProduct(normals, normals, { axis: 1 }));
  const scale = t.map(t.affine(t.cast(stdPrior, 'f32'), 2), 'exp');
  const variance = atLeast(t, t.multiply(scale, squares), MIN_VARIANCE);
  const alpha = atLeast(t, t.map(t.cast(expertPrior, 'f32'), 'exp'), MIN_ALPHA);
  const logs = t.map(alpha, 'log');
  const mean = t.add(logs, t.sum(logs, 1), 1, -1 / n);
  const inverse = t.map(alpha, 'reciprocal');
  const spread = t.add(t.affine(inverse, 1 - 2 / n), t.sum(inverse, 1), 1, 1 / n ** 2);
  const deviation = t.map(t.affine(atLeast(t, spread, MIN_ALPHA), 1, MIN_ALPHA), 'sqrt');
  const logits = t.add(t.multiply(deviation, t.own(drawn([n], seed, 1, device))), mean);
  return { variance, weights: softmax(t, t.reshape(logits, [1, n]), maps) };
}

/** Uniform in 0 to 1, as PEFT draws the priors. */
function unitUniform<Name extends string>(
  make: AdapterMaker<MontecloraConfig, Name>,
  name: Name,
): Tensor {
  const { device, dtype, shapes } = make;
  return Tensor.uniform(shapes[name], { device, dtype, seed: make.seed() });
}

/** `a`, as a step that gives the priors a zero gradient. */
function withoutSample(t: Tape, a: Value, priors: readonly Value[]): Value {
  return t.record(a.tensor.reshape(a.shape), [a, ...priors], [], (dy, pass) => {
    pass.give(a, dy);
    for (const prior of priors) {
      const { shape, device } = prior.tensor;
      pass.give(prior, Tensor.zeros(shape, { device }));
    }
  });
}

/**
 * LoRA whose loraA is drawn anew in every training step with a seed, around its trained mean:
 * `loraA + sampleScaler · √v ⊙ Σₑ wₑ · zₑ` with normal zₑ, row variances v from a Wishart distribution and sample
 * weights w from a Dirichlet one. The parameters `stdPrior` and `expertPrior` of these are trained through the draw.
 * Without a seed, in evaluation and after merging, it is plain LoRA. {@link montecloraLoss} is added to the loss of a
 * step.
 */
export const monteclora = defineAdapter({
  method: 'monteclora',
  reference:
    'Seth et al., Robust and Efficient Fine-tuning of LLMs with Bayesian Reparameterization of Low-Rank Adaptation, 2024, arXiv:2411.04358',
  defaults: {
    r: 8,
    loraAlpha: 16,
    rslora: false,
    dropout: 0,
    samples: 8,
    sampleScaler: 1e-4,
    klLossWeight: 1e-5,
    dirichletPrior: 0.1,
    useEntropy: false,
  } as MontecloraConfig,
  trained: ['loraA', 'loraB', 'stdPrior', 'expertPrior'],
  // The covariance and the weights of the last draw. PEFT's folders have them, but nothing reads
  // them.
  frozen: ['lastVariance', 'lastWeights'],
  check: ({ config: { samples } }) =>
    Number.isInteger(samples) && samples > 0
      ? undefined
      : ['samples', 'an integer above 0', String(samples)],
  shapes: ({ N, K, config: { r, samples } }) => ({
    loraA: [r, K],
    loraB: [N, r],
    stdPrior: [r],
    expertPrior: [samples],
    lastVariance: [r, r],
    lastWeights: [samples],
  }),
  init: (make) => ({
    loraA: make.kaiming('loraA'),
    loraB: make.zeros('loraB'),
    stdPrior: unitUniform(make, 'stdPrior'),
    expertPrior: unitUniform(make, 'expertPrior'),
    lastVariance: identity(make.config.r, make.device).to({ dtype: make.dtype }),
    lastWeights: make.full('lastWeights', 1 / make.config.samples),
  }),
  prepare: ({ device, config: { samples } }) => new RouterMaps(samples, device),
  forward: (t, { x, w, bias, p, config, state, training, seed, K }) => {
    const { r, samples, sampleScaler, dropout } = config;
    let a: Value;
    if (training && seed !== undefined) {
      const { variance, weights } = draw(t, p.stdPrior, p.expertPrior, state, seed);
      const z = t.own(drawn([samples, r * K], seed, 2, x.tensor.device));
      const mixed = t.reshape(t.product(weights, z), [r, K]);
      const deviation = t.reshape(t.map(variance, 'sqrt'), [r, 1]);
      a = t.add(p.loraA, t.multiply(mixed, deviation, sampleScaler));
    } else {
      a = withoutSample(t, p.loraA, [p.stdPrior, p.expertPrior]);
    }
    return t.expand(x, w, t.shrink(x, a, { dropout }), p.loraB, {
      scaling: scalingOf(config),
      bias,
    });
  },
  update: ({ loraA, loraB }, config) => ({ loraA, loraB, scaling: scalingOf(config) }),
  penalty: montecloraLoss,
  peft: {
    type: 'LORA',
    patterns: kAlphaPatterns,
    when: ({ monteclora_config }) => monteclora_config !== undefined && monteclora_config !== null,
    tensors: {
      loraA: 'lora_A.weight',
      loraB: 'lora_B.weight',
      stdPrior: 'lora_monteclora_sampler.std_prior',
      expertPrior: 'lora_monteclora_sampler.expert_weights_prior',
      lastVariance: 'lora_monteclora_sampler.gaussian_var_prior',
      lastWeights: 'lora_monteclora_sampler.expert_weights',
    },
    read: (config, module) => {
      const own = config.monteclora_config as Readonly<Record<string, unknown>>;
      return {
        ...readAlpha(config, module),
        samples: Number(own.num_samples ?? 8),
        sampleScaler: Number(own.sample_scaler ?? 1e-4),
        klLossWeight: Number(own.kl_loss_weight ?? 1e-5),
        dirichletPrior: Number(own.dirichlet_prior ?? 0.1),
        useEntropy: own.use_entropy === true,
      };
    },
    write: (config) => ({
      ...alphaFields(config),
      monteclora_config: {
        num_samples: config.samples,
        sample_scaler: config.sampleScaler,
        kl_loss_weight: config.klLossWeight,
        dirichlet_prior: config.dirichletPrior,
        use_entropy: config.useEntropy,
        buffer_size: 150,
      },
    }),
  },
});

/**
 * `KL(Dirichlet(exp(prior)) || Dirichlet(concentration, ...))` for a prior [n]. It reads the prior,
 * because the host computes the gamma function in float64.
 */
function dirichletKl(t: Tape, prior: Value, concentration: number): Value {
  const { device } = prior.tensor;
  const given = [...prior.tensor.readSync()];
  const alphas = given.map((p) => Math.max(Math.exp(p), MIN_ALPHA));
  const total = alphas.reduce((sum, alpha) => sum + alpha, 0);
  const excess = total - alphas.length * concentration;
  const [all, one] = [logGamma(total), logGamma(concentration)];
  let kl = all.value - logGamma(alphas.length * concentration).value;
  const gradient = alphas.map((alpha) => {
    const own = logGamma(alpha);
    kl += one.value - own.value + (alpha - concentration) * (own.digamma - all.digamma);
    if (alpha <= MIN_ALPHA) return 0;
    return alpha * ((alpha - concentration) * own.trigamma - excess * all.trigamma);
  });
  const slope = Tensor.from(gradient, prior.shape, { device });
  return t.record(Tensor.from([kl], [1, 1], { device }), [prior], [slope], (dy, pass) =>
    pass.give(prior, multiplyAdd({ a: slope, b: dy })),
  );
}

/** Result of {@link montecloraLoss}. */
export interface MontecloraLoss {
  /** [1] */
  readonly loss: Tensor;
  /** Gradients of the priors, to be added to those of the layer's backward pass. */
  readonly gradients: { readonly stdPrior: Tensor; readonly expertPrior: Tensor };
}

/**
 * A term that is added to a step's loss for one layer (the trainer takes the mean over layers), and
 * its gradients: `klLossWeight` times the divergences of the draw's distributions from their
 * priors, `KL(Dirichlet(exp(expertPrior)) || Dirichlet(dirichletPrior))`,
 * `KL(Wishart(exp(2 · stdPrior), r) || Wishart(1, r))` and, for each sample,
 * `KL(N(0, v) || N(0, 1))` with the v that the seed draws; with `useEntropy` also `Σₑ wₑ²`. PEFT's
 * code has one sign of the Dirichlet divergence reversed; this is the correct divergence.
 * @param adapter an adapter of {@link monteclora}; its priors are read
 * @param options.seed the seed of the step's forward pass
 * @throws ERR_TYPE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { saved } = adapter.forward(x, w, { seed: step });
 * const { loss, gradients } = montecloraLoss(adapter, { seed: step });
 */
export function montecloraLoss(adapter: Adapter, options: { seed: number }): MontecloraLoss {
  const op = 'montecloraLoss';
  if (!(adapter instanceof Adapter) || adapter.method !== 'monteclora') {
    throw wrongType(op, 'adapter', 'an adapter of monteclora', adapter);
  }
  const seed = checkInteger(
    op,
    'seed',
    readOptions(op, options, { seed: true }).seed,
    0,
    2 ** 53 - 1,
  );
  const config = adapter.config as MontecloraConfig;
  const { r, samples: n, klLossWeight, dirichletPrior, useEntropy } = config;
  return scope(() => {
    const t = new Tape();
    const parameters = adapter.parameters as Record<'stdPrior' | 'expertPrior', Tensor>;
    const [stdPrior, expertPrior] = [parameters.stdPrior, parameters.expertPrior].map((tensor) =>
      t.variable(tensor),
    ) as [Value, Value];
    const maps = adapter.state as RouterMaps;
    const { variance, weights } = draw(t, stdPrior, expertPrior, maps, seed);
    const std = t.cast(stdPrior, 'f32');
    const wishart = t.sum(t.add(t.map(t.affine(std, 2), 'exp'), std, 1, -2), 1);
    const normal = t.sum(t.add(variance, t.map(variance, 'log'), 1, -1), 1);
    const divergences = t.add(
      dirichletKl(t, expertPrior, dirichletPrior),
      t.add(t.affine(wishart, r / 2, -(r * r) / 2), t.affine(normal, n / 2, (-n * r) / 2)),
    );
    const kl = t.affine(divergences, klLossWeight);
    const total = useEntropy ? t.add(kl, t.sum(t.map(weights, 'square'), 1)) : kl;
    const one = Tensor.from([1], [1, 1], { device: adapter.device });
    const found = t.gradients(op, total, one, [stdPrior, expertPrior]);
    const [dStd, dExpert] = found as [Tensor, Tensor];
    const gradients = { stdPrior: dStd, expertPrior: dExpert };
    return { loss: total.tensor.reshape([1]), gradients };
  });
}
