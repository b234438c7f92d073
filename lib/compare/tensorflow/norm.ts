import type { Tensor } from '@tensorflow/tfjs';
import { tensorFrom, valuesOf } from '../../tfjs/ops/backend-memory.js';
import { customOp } from './custom-op.js';

/**
 * Root mean square norm over the last dimension.
 *
 *   y = x · s · weight,  s = 1 / sqrt(mean(x²) + eps)
 *   dx = s · g − x · s³ / D · Σ x · g,  g = weight · dy
 *
 * @param x [M, D]
 * @param weight [D], frozen
 * @returns [M, D]
 */
export function rmsNorm(x: Tensor, weight: Float32Array, eps: number): Tensor {
  const D = weight.length;
  const forward = () => {
    const value = tensorFrom(x.shape, (y) => {
      const xs = valuesOf(x);
      for (let start = 0; start < xs.length; start += D) {
        const s = inverseRms(xs, start, D, eps);
        for (let i = 0; i < D; i++) {
          y[start + i] = (xs[start + i] as number) * s * (weight[i] as number);
        }
      }
    });
    return { value, saved: [x] };
  };
  return customOp([x], forward, (dy, [xSaved]) => {
    const dx = tensorFrom(dy.shape, (out) => {
      const xs = valuesOf(xSaved as Tensor);
      const dys = valuesOf(dy);
      for (let start = 0; start < xs.length; start += D) {
        const s = inverseRms(xs, start, D, eps);
        let dot = 0;
        for (let i = 0; i < D; i++) {
          dot += (xs[start + i] as number) * (weight[i] as number) * (dys[start + i] as number);
        }
        const pull = (s * s * s * dot) / D;
        for (let i = 0; i < D; i++) {
          const g = (weight[i] as number) * (dys[start + i] as number);
          out[start + i] = s * g - (xs[start + i] as number) * pull;
        }
      }
    });
    return [dx];
  });
}

function inverseRms(xs: Float32Array, start: number, D: number, eps: number): number {
  let sum = 0;
  for (let i = start; i < start + D; i++) sum += (xs[i] as number) ** 2;
  return 1 / Math.sqrt(sum / D + eps);
}
