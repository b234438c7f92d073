/**
 * Updates of one tensor on the host, element by element, in f32: every operation is rounded once, and constants are computed in
 * double and rounded once, as in the native steps (native/host_device/optimizer_step.h).
 */

import type { HostUpdate } from '../definition/definition.js';

/** What a rule needs of an update. */
export type RuleUpdate = Pick<HostUpdate<object>, 'p' | 'g' | 'lr' | 'weightDecay' | 'step'>;

export interface AdamConstants {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
}

/** How variants of Adam differ. */
export interface AdamForm {
  /**
   * `l2` adds the decay to the gradient; `before` and `after` shrink the parameter before or after the step (AdamW).
   */
  readonly decay: 'l2' | 'before' | 'after';
  /** Is eps added before the bias of v is corrected, as in the AdamW of transformers? */
  readonly earlyEps?: boolean;
  /** Times the step: LAMB's trust ratio. */
  readonly scale?: number;
  /** The largest v so far: AMSGrad. */
  readonly largest?: Float32Array;
}

const f = Math.fround;

/** m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², p ← p − lr · m̂ / (√v̂ + eps). */
export function adamRule(
  { p, g, lr, weightDecay, step }: RuleUpdate,
  m: Float32Array,
  v: Float32Array,
  { beta1, beta2, eps }: AdamConstants,
  { decay, earlyEps = false, scale = 1, largest }: AdamForm,
): void {
  const second = Math.sqrt(1 - beta2 ** step);
  const rate = f((scale * lr * (earlyEps ? second : 1)) / (1 - beta1 ** step));
  const root = f(earlyEps ? 1 : 1 / second);
  const [b1, b2, rest1, rest2, added] = [f(beta1), f(beta2), f(1 - beta1), f(1 - beta2), f(eps)];
  const kept = f(1 - lr * weightDecay);
  const pull = decay === 'l2' ? f(weightDecay) : 0;
  for (let i = 0; i < p.length; i++) {
    const value = p[i] as number;
    const gradient = pull === 0 ? (g[i] as number) : f((g[i] as number) + f(pull * value));
    const mean = f(f((m[i] as number) * b1) + f(gradient * rest1));
    let square = f(f((v[i] as number) * b2) + f(f(gradient * gradient) * rest2));
    m[i] = mean;
    v[i] = square;
    if (largest !== undefined) {
      square = Math.max(largest[i] as number, square);
      largest[i] = square;
    }
    const size = f(f(f(Math.sqrt(square)) * root) + added);
    const moved = f(f(mean / size) * rate);
    if (decay === 'before') p[i] = f(value * kept) - moved;
    else p[i] = decay === 'after' ? f(value - moved) * kept : value - moved;
  }
}

/** g ← g + weightDecay · p, m ← momentum · m + g (the first m is g), p ← p − lr · scale · m. */
export function momentumRule(
  { p, g, lr, weightDecay }: RuleUpdate,
  m: Float32Array,
  {
    momentum,
    nesterov = false,
    scale = 1,
  }: { readonly momentum: number; readonly nesterov?: boolean; readonly scale?: number },
): void {
  const [kept, rate, decay] = [f(momentum), f(lr * scale), f(weightDecay)];
  for (let i = 0; i < p.length; i++) {
    const value = p[i] as number;
    const gradient = f((g[i] as number) + f(decay * value));
    const mean = f(f((m[i] as number) * kept) + gradient);
    m[i] = mean;
    const direction = nesterov ? f(gradient + f(kept * mean)) : mean;
    p[i] = value - f(rate * direction);
  }
}

/** p ← p − lr · (sign(β₁ m + (1 − β₁) g) + weightDecay · p), m ← β₂ m + (1 − β₂) g. */
export function lionRule(
  { p, g, lr, weightDecay }: RuleUpdate,
  m: Float32Array,
  { beta1, beta2 }: { readonly beta1: number; readonly beta2: number },
): void {
  const [b1, b2, rest1, rest2] = [f(beta1), f(beta2), f(1 - beta1), f(1 - beta2)];
  const [rate, kept] = [f(lr), f(1 - lr * weightDecay)];
  for (let i = 0; i < p.length; i++) {
    const gradient = g[i] as number;
    const mean = m[i] as number;
    const direction = Math.sign(f(f(mean * b1) + f(gradient * rest1)));
    p[i] = f((p[i] as number) * kept) - f(rate * direction);
    m[i] = f(mean * b2) + f(gradient * rest2);
  }
}

/** g ← g + weightDecay · p, v ← keep · v + share · g², p ← p − lr · g / (√v + eps). */
export function squaresRule(
  { p, g, lr, weightDecay }: RuleUpdate,
  v: Float32Array,
  constants: { readonly keep: number; readonly share: number; readonly eps: number },
): void {
  const [keep, share, eps] = [f(constants.keep), f(constants.share), f(constants.eps)];
  const [rate, decay] = [f(lr), f(weightDecay)];
  for (let i = 0; i < p.length; i++) {
    const value = p[i] as number;
    const gradient = f((g[i] as number) + f(decay * value));
    const square = f(f((v[i] as number) * keep) + f(f(gradient * gradient) * share));
    v[i] = square;
    p[i] = value - f(rate * f(gradient / f(f(Math.sqrt(square)) + eps)));
  }
}

/** p ← p − lr · (m̂ + α · slow) / (√v̂ + eps), with weight decay before or after it. */
export function ademamixRule(
  { p, g, lr, weightDecay, step }: RuleUpdate,
  m: Float32Array,
  slow: Float32Array,
  v: Float32Array,
  constants: AdamConstants & { readonly beta3: number; readonly alpha: number },
  decay: 'before' | 'after',
): void {
  const { beta1, beta2, beta3 } = constants;
  const [b1, b2, b3] = [f(beta1), f(beta2), f(beta3)];
  const [rest1, rest2, rest3] = [f(1 - beta1), f(1 - beta2), f(1 - beta3)];
  const [first, root] = [f(1 - beta1 ** step), f(Math.sqrt(1 - beta2 ** step))];
  const [alpha, eps] = [f(constants.alpha), f(constants.eps)];
  const [rate, kept] = [f(lr), f(1 - lr * weightDecay)];
  for (let i = 0; i < p.length; i++) {
    const gradient = g[i] as number;
    const mean = f(f((m[i] as number) * b1) + f(gradient * rest1));
    const old = f(f((slow[i] as number) * b3) + f(gradient * rest3));
    const square = f(f((v[i] as number) * b2) + f(f(gradient * gradient) * rest2));
    m[i] = mean;
    slow[i] = old;
    v[i] = square;
    const mixed = f(f(mean / first) + f(alpha * old));
    const moved = f(rate * f(mixed / f(f(f(Math.sqrt(square)) / root) + eps)));
    if (decay === 'before') p[i] = f((p[i] as number) * kept) - moved;
    else p[i] = f((p[i] as number) - moved) * kept;
  }
}

/** The Euclidean norm of values. */
export function normOf(values: Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value * value;
  return Math.sqrt(sum);
}

/** What a step of this norm is multiplied by so that it is at most `limit`; 1 where the limit is 0. */
export const trustRatio = (limit: number, norm: number): number =>
  limit > 0 && norm > limit ? limit / norm : 1;
