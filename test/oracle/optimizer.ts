/** AdamW as PyTorch defines it, and its clipping by the global norm, in float64. */

export interface AdamWSpec {
  readonly lr: number;
  readonly step: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  /** Of all gradients; undefined: they are used as they are. */
  readonly norm?: number;
  readonly maxNorm?: number;
}

/** A parameter and its moments. */
export interface AdamWState {
  p: Float64Array;
  m: Float64Array;
  v: Float64Array;
}

/** (Σ g²)^½ over all of them. */
export function globalNorm64(gradients: readonly ArrayLike<number>[]): number {
  let sum = 0;
  for (const g of gradients) for (let i = 0; i < g.length; i++) sum += (g[i] as number) ** 2;
  return Math.sqrt(sum);
}

/**
 * torch.optim.AdamW's step on one parameter, after torch.nn.utils.clip_grad_norm_. Each result has the sum of the
 * sizes of what was added for it, from which errors follow.
 */
export function adamw64(
  state: AdamWState,
  g: ArrayLike<number>,
  spec: AdamWSpec,
): AdamWState & { size: { p: Float64Array; m: Float64Array; v: Float64Array } } {
  const { lr, step, eps, weightDecay, norm, maxNorm = Number.POSITIVE_INFINITY } = spec;
  const [beta1, beta2] = spec.betas;
  const factor = norm === undefined ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
  const count = state.p.length;
  const make = () => ({
    p: new Float64Array(count),
    m: new Float64Array(count),
    v: new Float64Array(count),
  });
  const [out, size] = [make(), make()];
  for (let i = 0; i < count; i++) {
    const gi = (g[i] as number) * factor;
    const [p0, m0, v0] = [state.p[i], state.m[i], state.v[i]] as [number, number, number];
    const m = beta1 * m0 + (1 - beta1) * gi;
    const v = beta2 * v0 + (1 - beta2) * gi * gi;
    const mSize = Math.abs(beta1 * m0) + Math.abs((1 - beta1) * gi);
    const denominator = Math.sqrt(v / (1 - beta2 ** step)) + eps;
    const rate = lr / (1 - beta1 ** step) / denominator;
    out.m[i] = m;
    out.v[i] = v;
    out.p[i] = p0 * (1 - lr * weightDecay) - rate * m;
    size.m[i] = mSize;
    size.v[i] = v;
    size.p[i] = Math.abs(p0) + Math.abs(rate) * mSize;
  }
  return { ...out, size };
}
