import { Tensor } from '../../core/tensor.js';
import { choleskyRows, solveLower } from '../../linalg/cholesky.js';
import { rowDots } from '../../linalg/rows.js';
import { matmul } from '../../ops/matmul.js';
import { defineStart } from '../definition/definition.js';
import { gradientOf } from '../parts/gradient.js';

/**
 * Ranks and loraB from the first gradient: a layer's importance is the mean of |w ⊙ dW|, and its rank the share of the budget
 * Σ r·√(N + K) that its importance is of all, over √(N + K), from `least · r` to `most · r`. `loraA` is drawn as LoRA's,
 * and `s · loraB · loraA` is the projection of dW on it, times `−gamma · √(K / r)`: as large as a step of that
 * learning rate. The base is w. After the authors' program (github.com/hhnqqq/MyTransformers).
 */
export const gora = defineStart({
  start: 'gora',
  reference:
    'He et al., GoRA: Gradient-driven Adaptive Low Rank Adaptation, 2025, arXiv:2502.12171',
  from: 'gradient',
  defaults: { gamma: 0.05, least: 0.5, most: 4 },
  check: ({ gamma, least, most }) => {
    if (!(gamma > 0)) return ['gamma', 'above 0', String(gamma)];
    if (!(least > 0 && least <= 1)) return ['least', 'above 0 and at most 1', String(least)];
    return most >= 1 ? undefined : ['most', 'at least 1', String(most)];
  },
  measure: (layer) => {
    const dw = gradientOf(layer).readSync();
    const w = layer.w.readSync();
    let sum = 0;
    for (let i = 0; i < w.length; i++) sum += Math.abs((w[i] as number) * (dw[i] as number));
    return [sum / w.length];
  },
  ranks: (measured, r, { least, most }, sizes) => {
    const importances = measured.map(([value = 0]) => value);
    const whole = importances.reduce((a, b) => a + b, 0);
    const roots = sizes.map(({ N, K }) => Math.sqrt(N + K));
    const budget = r * roots.reduce((a, b) => a + b, 0);
    return importances.map((value, i) => {
      const share = whole > 0 ? value / whole : 1 / importances.length;
      const rank = Math.floor(Math.round(budget * share) / (roots[i] as number));
      const { N, K } = sizes[i] as { N: number; K: number };
      const bounded = Math.min(Math.max(rank, Math.round(least * r), 1), Math.round(most * r));
      return Math.min(bounded, N, K);
    });
  },
  factors: (layer, { r, scaling, seed, settings: { gamma } }) => {
    const { N, K, device } = layer;
    const bound = 1 / Math.sqrt(K);
    const loraA = Tensor.uniform([r, K], { device, seed, low: -bound, high: bound });
    const rows = Float64Array.from(loraA.readSync());
    const { l } = choleskyRows(rowDots(rows, r, rows, r, K), r);
    // dW · Aᵀ [N, r], as columns, over A · Aᵀ.
    const columns = Float64Array.from(matmul(loraA, gradientOf(layer)).readSync());
    solveLower(l, r, columns, N);
    solveLower(l, r, columns, N, true);
    const factor = (-gamma * Math.sqrt(K / r)) / scaling;
    const loraB = Float32Array.from(
      { length: N * r },
      (_, at) => factor * (columns[(at % r) * N + Math.floor(at / r)] as number),
    );
    return { loraA, loraB: Tensor.from(loraB, [N, r], { device }) };
  },
});
