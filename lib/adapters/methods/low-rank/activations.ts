/**
 * Activations by their names in transformers (`ACT2FN`), as steps on a tape.
 */

import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { full } from '../../../core/full.js';
import type { Tensor } from '../../../core/tensor.js';
import { mapTensor, multiplyAdd } from '../../../ops/elementwise.js';

type Step = (t: Tape, x: Value) => Value;

/** Abramowitz and Stegun, 7.1.26: erf(x) = 1 − (a₁s + … + a₅s⁵)·exp(−x²), s = 1 / (1 + p·x), within 1.5e-7 for x ≥ 0. */
const kErf = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429] as const;
const kErfP = 0.3275911;

/** alpha · a + beta */
function affine(a: Tensor, alpha: number, beta: number): Tensor {
  return multiplyAdd({ a, alpha, c: full([1], beta, { device: a.device }) });
}

const times = (a: Tensor, b: Tensor, alpha = 1): Tensor => multiplyAdd({ a, b, alpha });

/** erf of every value, f32. */
function erf(x: Tensor): Tensor {
  const size = mapTensor(x, 'abs');
  const s = mapTensor(affine(size, kErfP, 1), 'reciprocal');
  const sum = kErf
    .slice(0, -1)
    .reduceRight<Tensor>((so, a) => affine(times(so, s), 1, a), affine(s, 0, kErf[4]));
  const decay = mapTensor(multiplyAdd({ a: times(x, x), alpha: -1 }), 'exp');
  return times(mapTensor(x, 'sign'), affine(times(times(sum, s), decay), -1, 1));
}

/** The normal distribution function at (x − mean) / deviation, and the density there. */
function normal(x: Tensor, mean: number, deviation: number): { below: Tensor; density: Tensor } {
  const at = affine(x, Math.SQRT1_2 / deviation, (-mean * Math.SQRT1_2) / deviation);
  const height = 1 / (deviation * Math.sqrt(2 * Math.PI));
  const bell = mapTensor(multiplyAdd({ a: times(at, at), alpha: -1 }), 'exp');
  return {
    below: affine(erf(at), 0.5, 0.5),
    density: multiplyAdd({ a: bell, alpha: height }),
  };
}

/** `x · Φ(x)`, with its own derivative `Φ(x) + x · φ(x)`. */
function gelu(t: Tape, x: Value): Value {
  const { below } = normal(x.tensor, 0, 1);
  return t.record(times(x.tensor, below), [x], [x.tensor, below], (dy, pass) => {
    const { density } = normal(x.tensor, 0, 1);
    const slope = multiplyAdd({ a: x.tensor, b: density, c: below });
    pass.give(x, times(dy, slope));
  });
}

/** The normal distribution function with mean √½ and variance 1 / (4π). */
function laplace(t: Tape, x: Value): Value {
  const { below, density } = normal(x.tensor, Math.SQRT1_2, 1 / Math.sqrt(4 * Math.PI));
  return t.record(below, [x], [density], (dy, pass) => pass.give(x, times(dy, density)));
}

/** `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2` */
function geluTanh(t: Tape, x: Value): Value {
  const c = Math.sqrt(2 / Math.PI);
  const inner = t.multiply(x, t.affine(t.map(x, 'square'), 0.044715 * c, c));
  return t.multiply(x, t.affine(t.map(inner, 'tanh'), 0.5, 0.5));
}

const gated =
  (steepness: number): Step =>
  (t, x) =>
    t.multiply(x, t.map(t.affine(x, steepness), 'sigmoid'));

/** `relu(x) − slope · relu(−x)` */
const leaky =
  (slope: number): Step =>
  (t, x) =>
    t.add(t.map(x, 'relu'), t.map(t.affine(x, -1), 'relu'), 1, -slope);

/** x, limited to at most `top`. */
const capped = (t: Tape, x: Value, top: number): Value =>
  t.add(x, t.map(t.affine(x, 1, -top), 'relu'), 1, -1);

/** `x · relu6(x + 3) / 6` */
const hardSwish: Step = (t, x) =>
  t.multiply(x, capped(t, t.map(t.affine(x, 1, 3), 'relu'), 6), 1 / 6);

/** `x · tanh(log(1 + exp(x)))`, with the logarithm as `relu(x) + log(1 + exp(−|x|))`. */
function mish(t: Tape, x: Value): Value {
  const tail = t.map(t.affine(t.map(x, 'abs'), -1), 'exp');
  const softplus = t.add(t.map(x, 'relu'), t.map(t.affine(tail, 1, 1), 'log'));
  return t.multiply(x, t.map(softplus, 'tanh'));
}

/** Terms of log(1 + u) = 2s·(1 + s²/3 + s⁴/5 + …), s = u / (2 + u): for u up to 1 the relative error is below 1e-9. */
const kLogTerms = 9;

/**
 * `√log(1 + exp(x))`, with the logarithm as `relu(x) + log(1 + u)` and `u = exp(−|x|)`. A series
 * computes log(1 + u), so that the root is accurate far below zero. The derivative is
 * `sigmoid(x) / 2y`.
 */
function sqrtSoftplus(t: Tape, x: Value): Value {
  const u = mapTensor(multiplyAdd({ a: mapTensor(x.tensor, 'abs'), alpha: -1 }), 'exp');
  const s = times(u, mapTensor(affine(u, 1, 2), 'reciprocal'));
  const square = times(s, s);
  let series = affine(square, 0, 1 / (2 * kLogTerms - 1));
  for (let i = kLogTerms - 2; i >= 0; i--)
    series = affine(times(series, square), 1, 1 / (2 * i + 1));
  const softplus = multiplyAdd({ a: s, b: series, alpha: 2, c: mapTensor(x.tensor, 'relu') });
  const y = mapTensor(softplus, 'sqrt');
  return t.record(y, [x], [x.tensor, y], (dy, pass) => {
    // If both are 0 in f32, so is the result.
    const over = mapTensor(affine(y, 2, 1e-30), 'reciprocal');
    pass.give(x, times(dy, times(mapTensor(x.tensor, 'sigmoid'), over)));
  });
}

/** The initial alpha_p and alpha_n of transformers' xIELU, which it rounds to bf16; beta. */
const kXielu = { alpha: 0.80078125, beta: 0.5 } as const;

/**
 * xIELU (Huang and Schlag, 2024, arXiv:2411.13010): `alpha · relu(x)² + alpha · (exp(n) − 1 − n) + beta · x`, n = min(x, 0).
 */
function xielu(t: Tape, x: Value): Value {
  const { alpha, beta } = kXielu;
  const positive = t.map(x, 'relu');
  const negative = t.add(x, positive, 1, -1);
  const bent = t.add(t.affine(t.map(negative, 'exp'), 1, -1), negative, alpha, -alpha);
  return t.add(t.add(bent, t.map(positive, 'square'), 1, alpha), x, 1, beta);
}

const same: Step = (_, x) => x;

/**
 * y = f(x), with the shape of x; f32. Exact GELU is within 2e-7 of its value, the others within a few roundings. The
 * parameters that transformers gives `prelu` and `xielu` are constants here, with their initial values: PEFT makes those
 * modules anew in every pass, and neither trains nor saves them.
 */
export const activations: Readonly<Record<string, Step>> = {
  relu: (t, x) => t.map(x, 'relu'),
  tanh: (t, x) => t.map(x, 'tanh'),
  sigmoid: (t, x) => t.map(x, 'sigmoid'),
  linear: same,
  gelu,
  gelu_python: gelu,
  gelu_10: (t, x) => capped(t, gelu(t, x), 10),
  gelu_new: geluTanh,
  gelu_fast: geluTanh,
  gelu_accurate: geluTanh,
  gelu_pytorch_tanh: geluTanh,
  gelu_python_tanh: geluTanh,
  quick_gelu: gated(1.702),
  silu: gated(1),
  swish: gated(1),
  leaky_relu: leaky(0.01),
  prelu: leaky(0.25),
  hardswish: hardSwish,
  relu2: (t, x) => t.map(t.map(x, 'relu'), 'square'),
  relu6: (t, x) => capped(t, t.map(x, 'relu'), 6),
  laplace,
  mish,
  sqrtsoftplus: sqrtSoftplus,
  xielu,
};
