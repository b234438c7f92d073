import { checkTensor } from '../../core/check-tensor.js';
import { fail, markClass, wrongType } from '../../core/errors.js';
import { outsideScopes, scope, track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { checkFinite, checkSameDevice, readOptions, showShape } from '../../core/validate.js';
import { mapTensor, multiplyAdd } from '../../ops/elementwise.js';

/** How {@link Sensitivities} smooth. */
export interface SensitivityOptions {
  /** Decay of the mean of sensitivities; default 0.85. */
  readonly beta1?: number;
  /** Decay of the mean of their deviations; default 0.85. */
  readonly beta2?: number;
}

/** The two means of a parameter. */
interface Means {
  readonly sensitivity: Tensor;
  readonly uncertainty: Tensor;
}

/**
 * How much the loss depends on each value, smoothed over steps (Zhang et al., Adaptive Budget Allocation for
 * Parameter-Efficient Fine-Tuning, 2023, arXiv:2303.10512), as PEFT's AdaLoRA:
 *
 *   I ← β₁ I + (1 − β₁) |p ⊙ g|,   U ← β₂ U + (1 − β₂) | |p ⊙ g| − I |,   score = I ⊙ U
 *
 * Numbers of whole layers are smoothed alike: give their sensitivities as tensors ({@link Sensitivities.add}).
 * @example
 * const sensitivities = new Sensitivities();
 * const { gradients } = trainer.rehearse(passes);
 * for (const [i, { name, tensor }] of trainer.parameters.entries()) {
 *   const gradient = gradients[i];
 *   if (gradient !== undefined) sensitivities.update(name, tensor, gradient);
 * }
 * const scores = sensitivities.score('layers.0.q_proj.loraE');
 */
export class Sensitivities implements Disposable {
  readonly #means = new Map<string, Means>();
  readonly #beta1: number;
  readonly #beta2: number;

  /** @throws ERR_TYPE · ERR_VALUE */
  constructor(options?: SensitivityOptions) {
    const op = 'Sensitivities';
    const given = readOptions(op, options, { beta1: true, beta2: true });
    this.#beta1 = decay(op, 'beta1', given.beta1);
    this.#beta2 = decay(op, 'beta2', given.beta2);
    track(this);
  }

  /** The names that were added. */
  get names(): readonly string[] {
    return [...this.#means.keys()];
  }

  /**
   * Adds |p ⊙ g| of a step.
   * @param gradient in the shape of the parameter
   * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
   */
  update(name: string, parameter: Tensor, gradient: Tensor): void {
    const op = 'Sensitivities.update';
    checkTensor(op, 'parameter', parameter);
    checkTensor(op, 'gradient', gradient);
    checkSameDevice(op, 'gradient', gradient, parameter);
    if (showShape(gradient.shape) !== showShape(parameter.shape)) {
      const expected = `of shape ${showShape(parameter.shape)}`;
      fail('ERR_SHAPE', op, 'gradient', expected, showShape(gradient.shape));
    }
    scope(() => {
      const product = multiplyAdd({ a: parameter, b: gradient, dtype: 'f32' });
      this.add(name, mapTensor(product, 'abs'));
    });
  }

  /**
   * Adds sensitivities of a step, however they were found: of a layer, those of {@link updateSensitivity}.
   * @param sensitivity of any shape, the same in all steps
   * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
   */
  add(name: string, sensitivity: Tensor): void {
    const op = 'Sensitivities.add';
    if (typeof name !== 'string') throw wrongType(op, 'name', 'a string', name);
    checkTensor(op, 'sensitivity', sensitivity);
    const known = this.#means.get(name);
    if (known !== undefined) {
      const { shape } = known.sensitivity;
      if (showShape(shape) !== showShape(sensitivity.shape)) {
        const got = showShape(sensitivity.shape);
        fail('ERR_SHAPE', op, `the sensitivity of ${name}`, `of shape ${showShape(shape)}`, got);
      }
      checkSameDevice(op, 'sensitivity', sensitivity, known.sensitivity);
    }
    const [beta1, beta2] = [this.#beta1, this.#beta2];
    const made = outsideScopes(() =>
      scope(() => {
        const zero = () => Tensor.zeros(sensitivity.shape, { device: sensitivity.device });
        const before = known ?? { sensitivity: zero(), uncertainty: zero() };
        const mean = smoothed(before.sensitivity, sensitivity, beta1);
        const deviation = mapTensor(multiplyAdd({ a: sensitivity, c: mean, beta: -1 }), 'abs');
        return { sensitivity: mean, uncertainty: smoothed(before.uncertainty, deviation, beta2) };
      }),
    );
    free(known);
    this.#means.set(name, made);
  }

  /** I of a name, f32; it belongs to these sensitivities. @throws ERR_VALUE */
  sensitivity(name: string): Tensor {
    return this.#of('Sensitivities.sensitivity', name).sensitivity;
  }

  /** U of a name, f32; it belongs to these sensitivities. @throws ERR_VALUE */
  uncertainty(name: string): Tensor {
    return this.#of('Sensitivities.uncertainty', name).uncertainty;
  }

  /** I ⊙ U of a name, f32. @throws ERR_VALUE · ERR_OOM */
  score(name: string): Tensor {
    const { sensitivity, uncertainty } = this.#of('Sensitivities.score', name);
    return multiplyAdd({ a: sensitivity, b: uncertainty });
  }

  /**
   * Goes on from means that were stored.
   * @param means in one shape; they are copied
   * @throws ERR_TYPE · ERR_SHAPE · ERR_DISPOSED
   */
  restore(
    name: string,
    means: { readonly sensitivity: Tensor; readonly uncertainty: Tensor },
  ): void {
    const op = 'Sensitivities.restore';
    const { sensitivity, uncertainty } = means;
    checkTensor(op, 'sensitivity', sensitivity);
    checkTensor(op, 'uncertainty', uncertainty);
    if (showShape(sensitivity.shape) !== showShape(uncertainty.shape)) {
      const expected = `of shape ${showShape(sensitivity.shape)}`;
      fail('ERR_SHAPE', op, 'uncertainty', expected, showShape(uncertainty.shape));
    }
    const copies = outsideScopes(() => ({
      sensitivity: sensitivity.to({}),
      uncertainty: uncertainty.to({}),
    }));
    free(this.#means.get(name));
    this.#means.set(name, copies);
  }

  #of(op: string, name: string): Means {
    const found = this.#means.get(name);
    if (found !== undefined) return found;
    return fail('ERR_VALUE', op, 'name', 'one that was added', JSON.stringify(name));
  }

  /** Frees the means. Twice is a no-op. */
  dispose(): void {
    for (const means of this.#means.values()) free(means);
    this.#means.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(Sensitivities, 'Sensitivities');

/**
 * The scores of the ranks of a triple like AdaLoRA's, [r]: that of its middle value, plus the means of those of its row of A
 * and its column of B.
 * @param scores of loraA [r, K], loraE [r, 1] and loraB [N, r]
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DISPOSED
 * @example
 * const of = (name) => sensitivities.score(`layers.0.q_proj.${name}`);
 * const ranks = tripletScores({ loraA: of('loraA'), loraE: of('loraE'), loraB: of('loraB') });
 */
export function tripletScores(scores: {
  readonly loraA: Tensor;
  readonly loraE: Tensor;
  readonly loraB: Tensor;
}): Float64Array {
  const op = 'tripletScores';
  const { loraA, loraE, loraB } = scores;
  for (const [name, tensor] of Object.entries({ loraA, loraE, loraB })) {
    checkTensor(op, name, tensor);
  }
  const [r = 0, K = 0] = loraA.shape;
  const [N = 0, own] = loraB.shape;
  if (loraE.size !== r || own !== r) {
    const got = [loraA, loraE, loraB].map(({ shape }) => showShape(shape)).join(', ');
    fail('ERR_SHAPE', op, 'the scores', 'of shapes [r, K], [r, 1] and [N, r]', got);
  }
  const [a, e, b] = [loraA.readSync(), loraE.readSync(), loraB.readSync()];
  return Float64Array.from({ length: r }, (_, i) => {
    let [row, column] = [0, 0];
    for (let k = 0; k < K; k++) row += a[i * K + k] as number;
    for (let n = 0; n < N; n++) column += b[n * r + i] as number;
    return (e[i] as number) + row / K + column / N;
  });
}

const smoothed = (mean: Tensor, value: Tensor, beta: number): Tensor =>
  multiplyAdd({ a: mean, c: value, alpha: beta, beta: 1 - beta });

function free(means: Means | undefined): void {
  means?.sensitivity.dispose();
  means?.uncertainty.dispose();
}

function decay(op: string, name: string, value: number | undefined): number {
  const beta = checkFinite(op, name, value ?? 0.85);
  if (beta < 0 || beta >= 1) fail('ERR_VALUE', op, name, 'in [0, 1)', String(beta));
  return beta;
}
