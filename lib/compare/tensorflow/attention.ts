/**
 * Grouped-query attention, causal.
 *
 *   p = softmax(scale · q · kᵀ, columns up to the row's position),  y = p · v,  scale = 1 / sqrt(d)
 *
 * The query heads of a group are stacked as more rows over their one key head, so that keys and
 * values are never repeated and their gradients sum over the group automatically.
 */

import type { Tensor } from '@tensorflow/tfjs';
import { tensorFrom, valuesOf } from '../../tfjs/ops/backend-memory.js';
import { tensorflow } from '../../tfjs/ops/tensorflow.js';
import { customOp } from './custom-op.js';
import { exp } from './exp.js';
import { mergeHeads, type RotaryTable, splitHeads } from './heads.js';

/** Sizes of an attention layer over a batch. */
export interface AttentionShape {
  readonly B: number;
  readonly T: number;
  readonly numAttentionHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
}

/**
 * @param q [B·T, heads·d]
 * @param k [B·T, keyValueHeads·d]
 * @param v [B·T, keyValueHeads·d]
 * @returns [B·T, heads·d]
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  shape: AttentionShape,
  table: RotaryTable,
): Tensor {
  const { B, T, numAttentionHeads: H, numKeyValueHeads: kvH, headDim: d } = shape;
  const tf = tensorflow();
  const group = H / kvH;
  const qHeads = splitHeads(q, { B, T, H, d }, [B * kvH, group * T, d], table);
  const kHeads = splitHeads(k, { B, T, H: kvH, d }, [B * kvH, T, d], table);
  const vHeads = splitHeads(v, { B, T, H: kvH, d }, [B * kvH, T, d]);
  const scores = tf.matMul(qHeads, kHeads, false, true);
  const p = causalSoftmax(scores, 1 / Math.sqrt(d));
  return mergeHeads(tf.matMul(p, vHeads, false, false), { B, T, H, d });
}

/**
 * Row t (of every T rows) is a softmax over columns 0 to t; later columns are 0.
 *
 * @param scores [batch, group·T, T]
 */
function causalSoftmax(scores: Tensor, scale: number): Tensor {
  const T = scores.shape[2] as number;
  const forward = () => {
    const value = tensorFrom(scores.shape, (p) => {
      const s = valuesOf(scores);
      for (let start = 0, t = 0; start < s.length; start += T, t = t + 1 === T ? 0 : t + 1) {
        let max = Number.NEGATIVE_INFINITY;
        for (let i = start; i <= start + t; i++) if ((s[i] as number) > max) max = s[i] as number;
        let sum = 0;
        for (let i = start; i <= start + t; i++) {
          const e = exp(scale * ((s[i] as number) - max));
          p[i] = e;
          sum += e;
        }
        const inverse = 1 / sum;
        for (let i = start; i <= start + t; i++) p[i] = (p[i] as number) * inverse;
        p.fill(0, start + t + 1, start + T);
      }
    });
    return { value, saved: [value] };
  };
  return customOp([scores], forward, (dy, [pSaved]) => {
    const ds = tensorFrom(dy.shape, (out) => {
      const p = valuesOf(pSaved as Tensor);
      const dp = valuesOf(dy);
      for (let start = 0, t = 0; start < p.length; start += T, t = t + 1 === T ? 0 : t + 1) {
        let dot = 0;
        for (let i = start; i <= start + t; i++) dot += (p[i] as number) * (dp[i] as number);
        for (let i = start; i <= start + t; i++) {
          out[i] = scale * (p[i] as number) * ((dp[i] as number) - dot);
        }
        out.fill(0, start + t + 1, start + T);
      }
    });
    return [ds];
  });
}
