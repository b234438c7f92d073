/** The ops over small tensors, in float64. */
import { abs, at, type Bounded, type Matrix, matrix } from './linear.js';

/** b of [M | 1, N | 1] beside an element (m, n). */
const spread = (b: Matrix | undefined, m: number, n: number, none: number): number =>
  b === undefined ? none : at(b, b.rows === 1 ? 0 : m, b.cols === 1 ? 0 : n);

const build = (rows: number, cols: number, f: (m: number, n: number) => number): Matrix =>
  matrix(
    rows,
    cols,
    Float64Array.from({ length: rows * cols }, (_, i) => f(Math.floor(i / cols), i % cols)),
  );

/** alpha · a ⊙ b + beta · c */
export function multiplyAdd64(
  a: Matrix,
  b: Matrix | undefined,
  c: Matrix | undefined,
  alpha: number,
  beta: number,
): Bounded {
  const product = (m: number, n: number): number => alpha * at(a, m, n) * spread(b, m, n, 1);
  const summand = (m: number, n: number): number => beta * spread(c, m, n, 0);
  return {
    value: build(a.rows, a.cols, (m, n) => product(m, n) + (c === undefined ? 0 : summand(m, n))),
    p: build(a.rows, a.cols, (m, n) => Math.abs(product(m, n)) + Math.abs(summand(m, n))),
  };
}

/** Axis 0: Σₘ a ⊙ b, [1, N]; axis 1: Σₙ a ⊙ b, [1, M]. */
export function sumProduct64(a: Matrix, b: Matrix | undefined, axis: 0 | 1): Bounded {
  const sums = (left: Matrix, right: Matrix | undefined): Matrix => {
    const out = matrix(1, axis === 0 ? a.cols : a.rows);
    for (let m = 0; m < a.rows; m++) {
      for (let n = 0; n < a.cols; n++) {
        const i = axis === 0 ? n : m;
        out.data[i] = (out.data[i] as number) + at(left, m, n) * spread(right, m, n, 1);
      }
    }
    return out;
  };
  return { value: sums(a, b), p: sums(abs(a), b === undefined ? undefined : abs(b)) };
}

/** The functions of mapTensor, from Math. */
export const MAP64: Record<string, (x: number) => number> = {
  reciprocal: (x) => 1 / x,
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x),
  exp: Math.exp,
  log: Math.log,
  tanh: Math.tanh,
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  relu: (x) => Math.max(x, 0),
  abs: Math.abs,
  sign: Math.sign,
  square: (x) => x * x,
  sin: Math.sin,
  cos: Math.cos,
};
