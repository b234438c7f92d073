/** The halves of a LoRA layer on either side of h, and the gradient of a dense weight, in float64. */
import {
  abs,
  add,
  type Bounded,
  columnSums,
  hadamard,
  type Matrix,
  matmul64,
  matmulInputGrad64,
  scaled,
  times,
  timesTransposed,
  transpose,
} from './linear.js';

const scaledBounded = ({ value, p }: Bounded, factor: number): Bounded => ({
  value: scaled(value, factor),
  p: scaled(p, Math.abs(factor)),
});

const addBounded = (a: Bounded, b: Bounded): Bounded => ({
  value: add(a.value, b.value),
  p: add(a.p, b.p),
});

/** aᵀ · b */
const outer = (a: Matrix, b: Matrix): Bounded => ({
  value: times(transpose(a), b),
  p: times(transpose(abs(a)), abs(b)),
});

const gated = (x: Matrix, gate?: Matrix): Matrix => (gate === undefined ? x : hadamard(gate, x));

/** h = scaling · (gate ⊙ x) · loraAᵀ */
export function shrink64(x: Matrix, loraA: Matrix, scaling: number, gate?: Matrix): Bounded {
  return scaledBounded(matmul64(gated(x, gate), loraA), scaling);
}

/** y = x · wᵀ + bias + scaling · h · loraBᵀ */
export function expand64(
  x: Matrix,
  w: Matrix,
  h: Matrix,
  loraB: Matrix,
  scaling: number,
  bias?: Matrix,
): Bounded {
  const adapter = { value: timesTransposed(h, loraB), p: timesTransposed(abs(h), abs(loraB)) };
  return addBounded(matmul64(x, w, bias), scaledBounded(adapter, scaling));
}

/** Gradients of expand64 with respect to h, loraB and bias. */
export function expandBackward64(
  dy: Matrix,
  h: Matrix,
  loraB: Matrix,
  scaling: number,
): { dh: Bounded; dLoraB: Bounded; dBias: Bounded } {
  return {
    dh: scaledBounded({ value: times(dy, loraB), p: times(abs(dy), abs(loraB)) }, scaling),
    dLoraB: scaledBounded(outer(dy, h), scaling),
    dBias: { value: columnSums(dy), p: columnSums(abs(dy)) },
  };
}

/** Gradients with respect to x, of expand64 over shrink64, and loraA. */
export function shrinkBackward64(
  dy: Matrix,
  w: Matrix,
  dh: Matrix,
  x: Matrix,
  loraA: Matrix,
  scaling: number,
  gate?: Matrix,
): { dx: Bounded; dLoraA: Bounded } {
  let through = { value: times(dh, loraA), p: times(abs(dh), abs(loraA)) };
  if (gate !== undefined) {
    through = { value: hadamard(gate, through.value), p: hadamard(abs(gate), through.p) };
  }
  return {
    dx: addBounded(matmulInputGrad64(dy, w), scaledBounded(through, scaling)),
    dLoraA: scaledBounded(outer(dh, gated(x, gate)), scaling),
  };
}

/** dW = dyᵀ · x */
export const weightGrad64 = (dy: Matrix, x: Matrix): Bounded => outer(dy, x);
