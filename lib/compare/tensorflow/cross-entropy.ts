import type { Scalar, Tensor } from '@tensorflow/tfjs';
import { tensorFrom, valuesOf } from '../../tfjs/ops/backend-memory.js';
import { isRecording } from '../../tfjs/ops/saved-states.js';
import { customOp } from './custom-op.js';
import { exp } from './exp.js';

/**
 * Mean cross-entropy of the next token, in nats.
 *
 *   loss = mean over rows of (log Σ exp(logits) − logits[target]),  dlogits = (softmax − onehot) / M
 *
 * The gradient is computed in the forward pass, which has every exponential available.
 *
 * @param logits [M, vocab]
 * @param targets M token ids, each below vocab
 * @returns a scalar
 */
export function crossEntropy(logits: Tensor, targets: Int32Array): Scalar {
  const [M, vocab] = logits.shape as [number, number];
  let total = 0;
  // Without recording, the exponentials go to one row that is reused.
  const scratch = isRecording() ? undefined : new Float32Array(vocab);
  const exponentials = (z: Float32Array, row: number, out: Float32Array, at: number): number => {
    const start = row * vocab;
    let max = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < vocab; i++)
      if ((z[start + i] as number) > max) max = z[start + i] as number;
    let sum = 0;
    for (let i = 0; i < vocab; i++) {
      const e = exp((z[start + i] as number) - max);
      out[at + i] = e;
      sum += e;
    }
    total += Math.log(sum) + max - (z[start + (targets[row] as number)] as number);
    return sum;
  };
  const gradientOf = (gradient: Float32Array): void => {
    const z = valuesOf(logits);
    for (let row = 0; row < M; row++) {
      const start = row * vocab;
      const factor = 1 / (exponentials(z, row, gradient, start) * M);
      for (let i = start; i < start + vocab; i++) gradient[i] = (gradient[i] as number) * factor;
      const target = start + (targets[row] as number);
      gradient[target] = (gradient[target] as number) - 1 / M;
    }
  };
  const forward = () => {
    const saved: Tensor[] = [];
    if (scratch === undefined) saved.push(tensorFrom(logits.shape, gradientOf));
    else {
      const z = valuesOf(logits);
      for (let row = 0; row < M; row++) exponentials(z, row, scratch, 0);
    }
    return { value: tensorFrom([], (out) => out.fill(total / M)), saved };
  };
  return customOp([logits], forward, (dy, [gradient]) => [
    tensorFrom(logits.shape, (out) => {
      const factor = valuesOf(dy)[0] as number;
      const g = valuesOf(gradient as Tensor);
      for (let i = 0; i < out.length; i++) out[i] = factor * (g[i] as number);
    }),
  ]) as Scalar;
}
