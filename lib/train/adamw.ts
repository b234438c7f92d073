/**
 * AdamW over one flat array of parameters.
 *
 *   m ← β1 m + (1 − β1) g,  v ← β2 v + (1 − β2) g²
 *   p ← p − lr · weight_decay · p − lr · (m / (1 − β1^t)) / (sqrt(v / (1 − β2^t)) + eps)
 */

/** Constants of {@link AdamW}. */
export interface AdamWOptions {
  /** Default: 0.9 */
  readonly beta1?: number;
  /** Default: 0.999 */
  readonly beta2?: number;
  /** Default: 1e-8 */
  readonly eps?: number;
  /** Decoupled: it acts on the parameter, not on the gradient. Default: 0 */
  readonly weightDecay?: number;
}

export class AdamW {
  /** First moment. */
  readonly m: Float32Array;
  /** Second moment. */
  readonly v: Float32Array;
  /** Number of updates so far. */
  updates = 0;
  private readonly options: Required<AdamWOptions>;

  constructor(size: number, options: AdamWOptions = {}) {
    this.m = new Float32Array(size);
    this.v = new Float32Array(size);
    this.options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, ...options };
  }

  /** Moves `values` against `gradient`. */
  update(values: Float32Array, gradient: Float32Array, lr: number): void {
    const { beta1, beta2, eps, weightDecay } = this.options;
    const { m, v } = this;
    this.updates++;
    const stepSize = lr / (1 - beta1 ** this.updates);
    const vCorrection = 1 / (1 - beta2 ** this.updates);
    for (let i = 0; i < values.length; i++) {
      const g = gradient[i] as number;
      const mi = beta1 * (m[i] as number) + (1 - beta1) * g;
      const vi = beta2 * (v[i] as number) + (1 - beta2) * g * g;
      m[i] = mi;
      v[i] = vi;
      const p = values[i] as number;
      values[i] = p - lr * weightDecay * p - (stepSize * mi) / (Math.sqrt(vi * vCorrection) + eps);
    }
  }
}

/**
 * Scales a gradient so that its global norm is at most `maxNorm`.
 * @returns the norm before scaling
 */
export function clipByGlobalNorm(gradient: Float32Array, maxNorm: number): number {
  let sum = 0;
  for (let i = 0; i < gradient.length; i++) sum += (gradient[i] as number) ** 2;
  const norm = Math.sqrt(sum);
  if (norm > maxNorm) {
    const factor = maxNorm / norm;
    for (let i = 0; i < gradient.length; i++) gradient[i] = (gradient[i] as number) * factor;
  }
  return norm;
}

/**
 * Learning rate of a step: linear warm-up from lr / warmup to lr, then a cosine down to a tenth.
 *
 * @param step 0 for the first
 */
export function learningRate(step: number, lr: number, warmup: number, steps: number): number {
  if (step < warmup) return (lr * (step + 1)) / warmup;
  const progress = (step - warmup) / Math.max(1, steps - warmup);
  return lr * (0.55 + 0.45 * Math.cos(Math.PI * Math.min(1, progress)));
}
