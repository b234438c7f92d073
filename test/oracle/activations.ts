/** Activations by transformers' names, in float64. */

/** By its series near zero, by the continued fraction of what is left to 1 elsewhere. */
export function erf(x: number): number {
  const size = Math.abs(x);
  if (size > 2.5) {
    let rest = 0;
    for (let k = 60; k > 0; k--) rest = k / 2 / (size + rest);
    return Math.sign(x) * (1 - Math.exp(-size * size) / Math.sqrt(Math.PI) / (size + rest));
  }
  let [term, sum] = [x, x];
  for (let n = 1; n < 60; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const gelu = (x: number): number => 0.5 * x * (1 + erf(x / Math.SQRT2));
const geluTanh = (x: number): number =>
  0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

export const activationOracle: Readonly<Record<string, (x: number) => number>> = {
  relu: (x) => Math.max(x, 0),
  tanh: Math.tanh,
  sigmoid,
  linear: (x) => x,
  gelu,
  gelu_python: gelu,
  gelu_10: (x) => Math.min(10, Math.max(-10, gelu(x))),
  gelu_new: geluTanh,
  gelu_fast: geluTanh,
  gelu_accurate: geluTanh,
  gelu_pytorch_tanh: geluTanh,
  gelu_python_tanh: geluTanh,
  quick_gelu: (x) => x * sigmoid(1.702 * x),
  silu: (x) => x * sigmoid(x),
  swish: (x) => x * sigmoid(x),
  leaky_relu: (x) => (x < 0 ? 0.01 * x : x),
  // Slope and alphas as torch and transformers begin with: nothing trains them.
  prelu: (x) => (x < 0 ? 0.25 * x : x),
  hardswish: (x) => (x * Math.min(6, Math.max(x + 3, 0))) / 6,
  relu2: (x) => Math.max(x, 0) ** 2,
  relu6: (x) => Math.min(6, Math.max(x, 0)),
  laplace: (x) => 0.5 * (1 + erf((x - Math.SQRT1_2) / Math.sqrt(0.5 / Math.PI))),
  mish: (x) => x * Math.tanh(Math.log1p(Math.exp(x))),
  sqrtsoftplus: (x) => Math.sqrt(Math.log1p(Math.exp(x))),
  xielu: (x) => (x > 0 ? 0.80078125 * x * x + 0.5 * x : (Math.expm1(x) - x) * 0.80078125 + 0.5 * x),
};
