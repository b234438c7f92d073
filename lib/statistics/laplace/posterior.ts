import { fail, markClass, notConstructed } from '../../core/errors.js';
import { scope, track } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkFinite } from '../../core/validate.js';
import { sumProduct } from '../../ops/elementwise.js';
import { matmul } from '../../ops/matmul.js';
import { examplesOf, routeOf } from '../per-example/products.js';
import type { FactorRows } from '../per-example/tape.js';
import type { FactorCurvature } from './curvature.js';
import { classPasses, type LogitsPass } from './passes.js';

/** Logits of examples and how sure the posterior is of them. */
export interface LaplacePrediction {
  readonly examples: number;
  readonly classes: number;
  /** [examples, classes] */
  readonly logits: Float64Array;
  /** [examples, classes, classes]: the covariance of an example's logits. */
  readonly covariance: Float64Array;
}

/** What {@link laplace} found of the data. */
export interface LaplaceFit {
  readonly curvatures: readonly FactorCurvature[];
  readonly examples: number;
  readonly logLikelihood: number;
}

/**
 * A normal distribution over the factors of adapters around their trained values, whose precision is the curvature of the loss
 * plus that of the prior. {@link laplace} makes it.
 */
export class LaplacePosterior implements Disposable {
  /** Examples it was fitted to. */
  readonly examples: number;
  /** Σ log p(label) of the trained values. */
  readonly logLikelihood: number;
  /** Number of values in the factors. */
  readonly parameters: number;
  readonly #curvatures: readonly FactorCurvature[];
  readonly #squaredNorm: number;
  #priorPrecision: number;

  /** @internal */
  constructor(fit: LaplaceFit, priorPrecision: number) {
    if (fit?.curvatures === undefined) throw notConstructed('LaplacePosterior', 'laplace');
    this.#curvatures = fit.curvatures;
    this.examples = fit.examples;
    this.logLikelihood = fit.logLikelihood;
    this.#priorPrecision = priorPrecision;
    const factors = fit.curvatures.map(({ factor }) => factor);
    this.parameters = factors.reduce((sum, { size }) => sum + size, 0);
    this.#squaredNorm = factors
      .flatMap((factor) => [...factor.readSync()])
      .reduce((sum, value) => sum + value * value, 0);
    track(this);
  }

  /** λ: the prior is a normal distribution around 0 with the variance 1 / λ. */
  get priorPrecision(): number {
    return this.#priorPrecision;
  }

  /** @throws ERR_TYPE · ERR_VALUE if it is not above 0 */
  set priorPrecision(value: number) {
    this.#priorPrecision = checkPrecision('LaplacePosterior.priorPrecision', value);
  }

  /**
   * The log marginal likelihood of the data, to choose the prior and compare adapters without held-out data:
   * log p(D | θ) − λ/2 ‖θ‖² + P/2 log λ − ½ log det(F + λI), with the P trained values θ and the curvature F.
   * @param priorPrecision default that of the posterior
   * @throws ERR_TYPE · ERR_VALUE
   */
  logMarginalLikelihood(priorPrecision = this.#priorPrecision): number {
    const lambda = checkPrecision('LaplacePosterior.logMarginalLikelihood', priorPrecision);
    // Of det(F + λI) = λᴾ Π (1 + value / λ) the first factor cancels P/2 log λ.
    let determinant = 0;
    for (const { small, big, rows } of this.#curvatures) {
      for (const a of small.values) {
        for (const g of big.values) determinant += Math.log1p((a * g) / rows / lambda);
      }
    }
    return this.logLikelihood - (lambda / 2) * this.#squaredNorm - determinant / 2;
  }

  /**
   * Sets the prior's precision to the one with the largest {@link LaplacePosterior.logMarginalLikelihood}, from 1e-6 to 1e6.
   * @returns it
   */
  fitPriorPrecision(): number {
    const at = (exponent: number) => this.logMarginalLikelihood(10 ** exponent);
    let best = -6;
    for (let exponent = -6; exponent <= 6; exponent += 0.1) {
      if (at(exponent) > at(best)) best = exponent;
    }
    // Golden-section search between the neighbours.
    const ratio = (Math.sqrt(5) - 1) / 2;
    let [low, high] = [Math.max(-6, best - 0.1), Math.min(6, best + 0.1)];
    while (high - low > 1e-7) {
      const [left, right] = [high - ratio * (high - low), low + ratio * (high - low)];
      if (at(left) >= at(right)) high = right;
      else low = left;
    }
    this.#priorPrecision = 10 ** ((low + high) / 2);
    return this.#priorPrecision;
  }

  /**
   * The logits of examples, and their covariance under the model that is linear in the factors: J (F + λI)⁻¹ Jᵀ with the
   * Jacobian J of an example's logits. One backward pass a class.
   * @throws as {@link laplace}
   */
  predict(pass: LogitsPass): LaplacePrediction {
    const op = 'LaplacePosterior.predict';
    if (this.#curvatures.some(({ small }) => small.vectors.disposed)) {
      fail('ERR_DISPOSED', op, 'this', 'live', 'disposed');
    }
    const trained = this.#curvatures.map(({ factor }) => factor);
    const byFactor = new Map<Tensor, FactorRows[]>();
    return scope(() => {
      const passes = classPasses(op, pass, trained, (c, { classes, examples }) =>
        Float32Array.from({ length: examples * classes }, (_, i) => (i % classes === c ? 1 : 0)),
      );
      try {
        const { examples, classes, logits } = passes;
        for (const rows of passes.backward()) {
          for (const row of rows) {
            const known = byFactor.get(row.factor);
            if (known === undefined) byFactor.set(row.factor, [row]);
            else known.push(row);
          }
        }
        const covariance = new Float64Array(examples * classes * classes);
        for (const curvature of this.#curvatures) {
          const rows = byFactor.get(curvature.factor);
          if (rows === undefined) continue;
          scope(() => this.#add(covariance, curvature, rows, examples));
        }
        return { examples, classes, logits, covariance };
      } finally {
        passes.dispose();
        for (const { small, big } of [...byFactor.values()].flat()) {
          small.dispose();
          big.dispose();
        }
      }
    });
  }

  /** Adds what the uncertainty of one factor makes of the logits' covariance. */
  #add(
    covariance: Float64Array,
    { small, big, rows: count }: FactorCurvature,
    rows: readonly FactorRows[],
    examples: number,
  ): void {
    const lambda = this.#priorPrecision;
    const route = routeOf(rows, examples);
    const classes = rows.length;
    // Jacobians in the basis of the eigenvectors: [examples, big · small] for each class.
    const turned = rows.map((each) => {
      const own = { scaling: each.scaling, small: matmul(each.small, small.vectors) };
      const wide = each.big.to({ dtype: 'f32' });
      return examplesOf({ ...own, big: matmul(wide, big.vectors) }, route).readSync();
    });
    const [k, r] = [big.values.length, small.values.length];
    const weights = Float64Array.from({ length: k * r }, (_, i) => {
      const value = (big.values[Math.floor(i / r)] as number) * (small.values[i % r] as number);
      return 1 / (value / count + lambda);
    });
    const whole = big.whole ? undefined : rows.map((each) => examplesOf(each, route));
    for (let c = 0; c < classes; c++) {
      for (let d = 0; d <= c; d++) {
        const [a, b] = [turned[c], turned[d]] as [Float32Array, Float32Array];
        const all =
          whole === undefined
            ? undefined
            : sumProduct(whole[c] as Tensor, whole[d], { axis: 1 }).readSync();
        for (let n = 0; n < examples; n++) {
          let [sum, inside] = [0, 0];
          for (let i = 0; i < k * r; i++) {
            const product = (a[n * k * r + i] as number) * (b[n * k * r + i] as number);
            sum += product * (weights[i] as number);
            inside += product;
          }
          // Outside of the kept directions the posterior is the prior.
          if (all !== undefined) sum += ((all[n] as number) - inside) / lambda;
          for (const at of c === d ? [c * classes + d] : [c * classes + d, d * classes + c]) {
            const index = n * classes * classes + at;
            covariance[index] = (covariance[index] as number) + sum;
          }
        }
      }
    }
  }

  /** Frees the eigenvectors; the factors are the caller's. Twice is a no-op. */
  dispose(): void {
    for (const { small, big } of this.#curvatures) {
      small.vectors.dispose();
      big.vectors.dispose();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(LaplacePosterior, 'LaplacePosterior');

/** @throws ERR_TYPE · ERR_VALUE */
export function checkPrecision(op: string, value: unknown): number {
  const precision = checkFinite(op, 'priorPrecision', value);
  if (precision <= 0) fail('ERR_VALUE', op, 'priorPrecision', 'above 0', String(precision));
  return precision;
}
