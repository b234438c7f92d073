/** The loss behind a head and the gradient of its input, in float64. */
import { at, type Bounded, type Matrix, matrix } from './linear.js';

export interface LossSpec {
  readonly targets: ArrayLike<number>;
  readonly weights?: ArrayLike<number>;
  readonly scale: number;
  readonly softcap: number;
}

/** losses [1, M] with the size of the target's logit products, and dx with Σ |terms|. */
export function crossEntropy64(
  x: Matrix,
  head: Matrix,
  { targets, weights, scale, softcap }: LossSpec,
): { losses: Bounded; dx: Bounded; logitError: Float64Array } {
  const [losses, lossSize] = [matrix(1, x.rows), matrix(1, x.rows)];
  const [dx, size] = [matrix(x.rows, x.cols), matrix(x.rows, x.cols)];
  // The largest Σ |x · w| of a token: what the error of a logit is measured by.
  const logitError = new Float64Array(x.rows);
  for (let m = 0; m < x.rows; m++) {
    const target = targets[m] as number;
    const z = new Float64Array(head.rows);
    const slope = new Float64Array(head.rows).fill(1);
    for (let v = 0; v < head.rows; v++) {
      let [sum, most] = [0, 0];
      for (let k = 0; k < x.cols; k++) {
        const product = at(x, m, k) * at(head, v, k);
        sum += product;
        most += Math.abs(product);
      }
      logitError[m] = Math.max(logitError[m] as number, most);
      if (softcap > 0) {
        const t = Math.tanh(sum / softcap);
        slope[v] = 1 - t * t;
        sum = softcap * t;
      }
      z[v] = sum;
    }
    const top = Math.max(...z);
    const total = z.reduce((sum, value) => sum + Math.exp(value - top), 0);
    if (target < 0) continue;
    losses.data[m] = top + Math.log(total) - (z[target] as number);
    lossSize.data[m] = Math.abs(top) + Math.abs(z[target] as number) + (logitError[m] as number);
    const weight = scale * ((weights?.[m] as number | undefined) ?? 1);
    for (let v = 0; v < head.rows; v++) {
      const p = Math.exp((z[v] as number) - top) / total;
      const factor = weight * (p - (v === target ? 1 : 0)) * (slope[v] as number);
      const terms = Math.abs(weight) * (p + (v === target ? 1 : 0)) * (slope[v] as number);
      for (let k = 0; k < x.cols; k++) {
        const i = m * x.cols + k;
        dx.data[i] = (dx.data[i] as number) + factor * at(head, v, k);
        size.data[i] = (size.data[i] as number) + Math.abs(terms * at(head, v, k));
      }
    }
  }
  return { losses: { value: losses, p: lossSize }, dx: { value: dx, p: size }, logitError };
}
