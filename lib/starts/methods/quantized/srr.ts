import { scope } from '../../../core/scope.js';
import { Tensor } from '../../../core/tensor.js';
import { type Svd, svd } from '../../../linalg/tensors/svd.js';
import { multiplyAdd, sumProduct } from '../../../ops/elementwise.js';
import { mergeLora, unmergeLora } from '../../../ops/lora/merge.js';
import { defineStart } from '../../definition/definition.js';
import { decoded } from '../../parts/decoded.js';
import { balanced } from '../../parts/factors.js';
import { autocorrelationOf, inputsOf } from '../../parts/inputs.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';
import { integerIn } from '../../parts/settings.js';
import { SeenMatrix } from '../../parts/weighted-repair.js';

/** The share of a matrix' energy behind its first k triplets, for k from 0 to r. */
function tailsOf(m: Tensor, r: number, options: { seed: number; iterations: number | 'exact' }) {
  return scope(() => {
    const [whole = 0] = sumProduct(m.reshape([1, m.size]), m.reshape([1, m.size]), {
      axis: 1,
    }).readSync();
    const { s } = svd(m, { r, ...options });
    const tails = [1];
    for (const size of s) tails.push(Math.max(0, (tails.at(-1) as number) - size ** 2 / whole));
    return tails;
  });
}

/** Two sets of triplets as one. */
function joined(a: Svd, b: Svd, N: number, K: number): Svd {
  const { device } = a.u;
  const [p, q] = [a.s.length, b.s.length];
  const u = new Float32Array(N * (p + q));
  const [left, right] = [a.u.readSync(), b.u.readSync()];
  for (let n = 0; n < N; n++) {
    u.set(left.subarray(n * p, (n + 1) * p), n * (p + q));
    u.set(right.subarray(n * q, (n + 1) * q), n * (p + q) + p);
  }
  const v = new Float32Array((p + q) * K);
  v.set(a.v.readSync());
  v.set(b.v.readSync(), p * K);
  return {
    u: Tensor.from(u, [N, p + q], { device }),
    s: Float64Array.from([...a.s, ...b.s]),
    v: Tensor.from(v, [p + q, K], { device }),
  };
}

/**
 * Structured residual reconstruction: the first k triplets of the weight as its inputs see it stay out of the quantiser, and the
 * other r − k repair what quantising the rest does, in the same view. k is that of least `ρₖ(w·L) · ρᵣ₋ₖ(E·L)`, where ρ is the
 * energy behind so many triplets, E is uniform noise and L a root of the inputs' second moments. `preserved` sets k instead.
 * The paper also scales the gradients of the k triplets during training, which is not part of a start.
 */
export const srr = defineStart({
  start: 'srr',
  reference:
    'Cho et al., Preserve-Then-Quantize: Balancing Rank Budgets for Quantization Error Reconstruction in LLMs, 2026, arXiv:2602.02001',
  from: 'inputs',
  quantises: true,
  defaults: { preserved: -1, iterations: 12 },
  replacesBase: true,
  check: (settings) => integerIn(settings, 'preserved', -1, 65536) ?? checkIterations(settings),
  factors: (layer, { r, scaling, seed, settings }) => {
    const { w, N, K, device, quantise } = layer;
    const iterations = passesOf(settings);
    const view = new SeenMatrix('srr', autocorrelationOf(inputsOf(layer)), layer);
    const chosen = (): number => {
      const noise = Tensor.uniform([N, K], { seed: seed + 1, low: -1, high: 1, device });
      const kept = tailsOf(view.seen(w), r, { seed, iterations });
      const repaired = tailsOf(view.seen(noise), r, { seed, iterations });
      const losses = kept.map((tail, k) => tail * (repaired[r - k] as number));
      return losses.indexOf(Math.min(...losses));
    };
    const k = settings.preserved < 0 ? chosen() : Math.min(settings.preserved, r);
    const take = (m: Tensor, count: number): Svd =>
      count === 0
        ? {
            u: Tensor.zeros([N, 0], { device }),
            s: new Float64Array(),
            v: Tensor.zeros([0, K], { device }),
          }
        : view.triplets(m, { r: count, seed, iterations });
    const first = take(w, k);
    const plain = { ...balanced(first, 1), scaling: 1 };
    const base = quantise(k === 0 ? w : unmergeLora(w.to({}), plain).weight);
    const whole = k === 0 ? decoded(base) : mergeLora(decoded(base), plain).weight;
    const second = take(multiplyAdd({ a: w, c: whole, beta: -1 }), r - k);
    return { ...balanced(joined(first, second, N, K), scaling), base };
  },
});
