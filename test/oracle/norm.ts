/** Root-mean-square norms and their gradients in float64. */
import { at, type Bounded, type Matrix, matrix } from './linear.js';

export interface RmsNormSpec {
  readonly eps: number;
  readonly plusOne: boolean;
}

const gainOf = (g: Matrix, n: number, { plusOne }: RmsNormSpec): number =>
  (g.data[n] as number) + (plusOne ? 1 : 0);

/** (mean s² + eps)^-½ of each row. */
export function inverseRms64(s: Matrix, { eps }: RmsNormSpec): Float64Array {
  return Float64Array.from({ length: s.rows }, (_, m) => {
    let squares = 0;
    for (let n = 0; n < s.cols; n++) squares += at(s, m, n) ** 2;
    return 1 / Math.sqrt(squares / s.cols + eps);
  });
}

/** y = s · inv_rms · gain; p has the size of what is rounded. */
export function rmsNorm64(s: Matrix, g: Matrix, spec: RmsNormSpec): Bounded {
  const inverse = inverseRms64(s, spec);
  const value = matrix(s.rows, s.cols);
  for (let m = 0; m < s.rows; m++) {
    for (let n = 0; n < s.cols; n++) {
      value.data[m * s.cols + n] = at(s, m, n) * (inverse[m] as number) * gainOf(g, n, spec);
    }
  }
  return { value, p: matrix(s.rows, s.cols, value.data.map(Math.abs)) };
}

/** dx = inv_rms · u - s · inv_rms³ · c / D + d_sum, u = gain ⊙ dy, c = Σ s · u. */
export function rmsNormInputGrad64(
  dy: Matrix,
  s: Matrix,
  g: Matrix,
  spec: RmsNormSpec,
  dSum?: Matrix,
): Bounded {
  const inverse = inverseRms64(s, spec);
  const [value, p] = [matrix(s.rows, s.cols), matrix(s.rows, s.cols)];
  for (let m = 0; m < s.rows; m++) {
    const i = inverse[m] as number;
    const u = (n: number): number => at(dy, m, n) * gainOf(g, n, spec);
    let [c, size] = [0, 0];
    for (let n = 0; n < s.cols; n++) {
      c += at(s, m, n) * u(n);
      size += Math.abs(at(s, m, n) * u(n));
    }
    for (let n = 0; n < s.cols; n++) {
      const factor = (at(s, m, n) * i ** 3) / s.cols;
      const extra = dSum === undefined ? 0 : at(dSum, m, n);
      value.data[m * s.cols + n] = i * u(n) - factor * c + extra;
      p.data[m * s.cols + n] = Math.abs(i * u(n)) + Math.abs(factor) * size + Math.abs(extra);
    }
  }
  return { value, p };
}

/** dg = Σₘ dy ⊙ s · inv_rms */
export function rmsNormGainGrad64(dy: Matrix, s: Matrix, spec: RmsNormSpec): Bounded {
  const inverse = inverseRms64(s, spec);
  const [value, p] = [matrix(1, s.cols), matrix(1, s.cols)];
  for (let m = 0; m < s.rows; m++) {
    for (let n = 0; n < s.cols; n++) {
      const term = at(dy, m, n) * at(s, m, n) * (inverse[m] as number);
      value.data[n] = (value.data[n] as number) + term;
      p.data[n] = (p.data[n] as number) + Math.abs(term);
    }
  }
  return { value, p };
}
