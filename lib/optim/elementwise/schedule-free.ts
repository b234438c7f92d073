import { defineOptimizer } from '../definition/define.js';
import { adamCheck, negative } from '../parts/checks.js';

/** Places in the state `sums`. */
const [kWeights, kLargest, kStarted] = [0, 1, 2] as const;

/**
 * Schedule-free AdamW (Defazio and others, The Road Less Scheduled, 2024, arXiv:2405.15682), as the authors' program has it.
 * Gradients are taken at y, which the parameter holds; x, a weighted mean of z, is what is evaluated and saved. The learning
 * rate of the run stays constant after its warm-up. In step t, with d = g / (√(v / (1 − β₂ᵗ)) + eps) + weightDecay · y:
 *
 *   w = tʳ · (largest lr)^power      c = w / Σw      v ← β₂ v + (1 − β₂) g²
 *   y ← (1 − c) y + c z + lr · (β₁ (1 − c) − 1) · d      z ← z − lr · d      x = (y − (1 − β₁) z) / β₁
 */
export const scheduleFree = defineOptimizer({
  optimizer: 'schedule-free',
  reference: 'Defazio and others, The Road Less Scheduled, 2024, arXiv:2405.15682',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-8, r: 0, power: 2, warmupSteps: 0 },
  check: (settings) =>
    adamCheck(settings) ??
    negative(settings, 'r', 'power', 'warmupSteps') ??
    (settings.beta1 > 0 ? undefined : ['beta1', 'above 0', String(settings.beta1)]),
  notNegative: ['v', 'sums'],
  schedule: 'constant',
  state: ({ tensor: { shape } }) => ({ z: shape, v: shape, sums: [3] }),
  update: ({ p, g, state: { z, v, sums }, lr, weightDecay, step, settings }) => {
    const { beta1, beta2, eps, r, power, warmupSteps } = settings;
    if (sums[kStarted] === 0) z.set(p);
    sums[kStarted] = 1;
    const rate = lr * (step < warmupSteps ? step / warmupSteps : 1);
    sums[kLargest] = Math.max(rate, sums[kLargest] as number);
    const weight = step ** r * (sums[kLargest] as number) ** power;
    sums[kWeights] = (sums[kWeights] as number) + weight;
    const share = weight === 0 ? 0 : weight / (sums[kWeights] as number);
    const along = rate * (beta1 * (1 - share) - 1);
    const second = 1 - beta2 ** step;
    for (let i = 0; i < p.length; i++) {
      const y = p[i] as number;
      const gradient = g[i] as number;
      const square = beta2 * (v[i] as number) + (1 - beta2) * gradient * gradient;
      v[i] = square;
      const direction = gradient / (Math.sqrt(square / second) + eps) + weightDecay * y;
      p[i] = y + share * ((z[i] as number) - y) + along * direction;
      z[i] = (z[i] as number) - rate * direction;
    }
  },
  evaluated: ({ p, state: { z, sums }, settings: { beta1 } }) => {
    if (sums[kStarted] === 0) return;
    const share = 1 - 1 / beta1;
    for (let i = 0; i < p.length; i++) {
      p[i] = (p[i] as number) + share * ((z[i] as number) - (p[i] as number));
    }
  },
});
