/** The layers of a decoder but attention, each with its gradient written by hand. */
import type { GateKind } from '../../../lib/index.js';
import { add, type Matrix, matrix, product, type Step, scale, transpose } from './matrix.js';

/** A low-rank adapter of one layer. */
export interface OracleLora {
  readonly scaling: number;
  /** [r, K] */
  readonly a: Matrix;
  /** [N, r] */
  readonly b: Matrix;
}

/** Gradients of the factors of one layer. */
export interface LoraGradient {
  readonly a: Matrix;
  readonly b: Matrix;
}

export interface LinearParts {
  /** [N, K] */
  readonly w: Matrix;
  readonly bias?: Float64Array | undefined;
  readonly lora?: OracleLora | undefined;
}

/** y = x · wᵀ + bias + scaling · (x · aᵀ) · bᵀ; `found` is told the gradients of a and b. */
export function linear(
  x: Matrix,
  { w, bias, lora }: LinearParts,
  found: (gradient: LoraGradient) => void,
): Step {
  let y = product(x, transpose(w));
  if (bias !== undefined) {
    y = matrix(
      y.rows,
      y.cols,
      y.values.map((value, i) => value + (bias[i % y.cols] as number)),
    );
  }
  if (lora === undefined) return { y, back: (dy) => product(dy, w) };
  const { a, b, scaling } = lora;
  const h = product(x, transpose(a));
  return {
    y: add(y, product(h, transpose(b)), scaling),
    back: (dy) => {
      const dh = scale(product(dy, b), scaling);
      found({ a: product(transpose(dh), x), b: scale(product(transpose(dy), h), scaling) });
      return add(product(dy, w), product(dh, a));
    },
  };
}

/** y = x / √(mean x² + eps) · g of each row, with g = weight or 1 + weight. */
export function rmsNorm(
  x: Matrix,
  weight: Float64Array,
  { eps, plusOne }: { readonly eps: number; readonly plusOne: boolean },
): Step {
  const { rows, cols } = x;
  const g = weight.map((value) => (plusOne ? 1 + value : value));
  const y = matrix(rows, cols);
  const inverse = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    const row = x.values.subarray(i * cols, (i + 1) * cols);
    const s = 1 / Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / cols + eps);
    inverse[i] = s;
    row.forEach((value, j) => {
      y.values[i * cols + j] = value * s * (g[j] as number);
    });
  }
  const back = (dy: Matrix): Matrix => {
    const dx = matrix(rows, cols);
    for (let i = 0; i < rows; i++) {
      const s = inverse[i] as number;
      let along = 0;
      for (let j = 0; j < cols; j++) {
        const at = i * cols + j;
        along += (x.values[at] as number) * (g[j] as number) * (dy.values[at] as number);
      }
      for (let j = 0; j < cols; j++) {
        const at = i * cols + j;
        dx.values[at] =
          s * (g[j] as number) * (dy.values[at] as number) -
          ((x.values[at] as number) * s ** 3 * along) / cols;
      }
    }
    return dx;
  };
  return { y, back };
}

/** The function of a gate and its derivative; that of silu-clamped is of a gate that is clamped already. */
const GATES: Record<GateKind, (x: number) => readonly [number, number]> = {
  'silu-clamped': (x) => {
    const sigmoid = 1 / (1 + Math.exp(-1.702 * x));
    return [x * sigmoid, sigmoid * (1 + 1.702 * x * (1 - sigmoid))];
  },
  silu: (x) => {
    const sigmoid = 1 / (1 + Math.exp(-x));
    return [x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))];
  },
  gelu: (x) => {
    const cdf = (1 + erf(x / Math.SQRT2)) / 2;
    return [x * cdf, cdf + (x * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI)];
  },
  'gelu-tanh': (x) => {
    const root = Math.sqrt(2 / Math.PI);
    const t = Math.tanh(root * (x + 0.044715 * x ** 3));
    const inner = root * (1 + 3 * 0.044715 * x * x);
    return [(x / 2) * (1 + t), (1 + t) / 2 + (x / 2) * (1 - t * t) * inner];
  },
};

/** The error function by its series, and by its continued fraction where the series cancels. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z < 2.5) {
    let [sum, term] = [z, z];
    for (let n = 1; Math.abs(term) > 1e-18 * sum; n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let tail = 0;
  for (let n = 120; n > 0; n--) tail = n / 2 / (z + tail);
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * (z + tail)));
}

/** Of gpt-oss: min(gate, 7), clamp(up, -7, 7) + 1, and where they have a slope. */
function clamped(a: Matrix, b: Matrix): Step<readonly [Matrix, Matrix]> {
  const held = matrix(
    a.rows,
    a.cols,
    a.values.map((v) => Math.min(v, 7)),
  );
  const up = matrix(
    b.rows,
    b.cols,
    b.values.map((v) => Math.max(-7, Math.min(v, 7)) + 1),
  );
  const step = gatedBy(held, up, 'silu-clamped');
  return {
    y: step.y,
    back: (dy) => {
      const [da, db] = step.back(dy);
      const where = (d: Matrix, of: Matrix, inside: (v: number) => boolean) =>
        matrix(
          d.rows,
          d.cols,
          d.values.map((v, i) => (inside(of.values[i] as number) ? v : 0)),
        );
      return [where(da, a, (v) => v <= 7), where(db, b, (v) => Math.abs(v) <= 7)];
    },
  };
}

/** gate(a) ⊙ b */
export function gated(a: Matrix, b: Matrix, kind: GateKind): Step<readonly [Matrix, Matrix]> {
  return kind === 'silu-clamped' ? clamped(a, b) : gatedBy(a, b, kind);
}

function gatedBy(a: Matrix, b: Matrix, kind: GateKind): Step<readonly [Matrix, Matrix]> {
  const values = Array.from(a.values, GATES[kind]);
  const y = b.values.map((value, i) => (values[i] as readonly [number, number])[0] * value);
  return {
    y: matrix(a.rows, a.cols, y),
    back: (dy) => [
      matrix(
        a.rows,
        a.cols,
        dy.values.map(
          (d, i) => d * (b.values[i] as number) * (values[i] as readonly [number, number])[1],
        ),
      ),
      matrix(
        a.rows,
        a.cols,
        dy.values.map((d, i) => d * (values[i] as readonly [number, number])[0]),
      ),
    ],
  };
}

/** cap · tanh(x / cap) */
export function softcapped(x: Matrix, cap: number | undefined): Step {
  if (cap === undefined) return { y: x, back: (dy) => dy };
  const y = matrix(
    x.rows,
    x.cols,
    x.values.map((value) => cap * Math.tanh(value / cap)),
  );
  const back = (dy: Matrix): Matrix =>
    matrix(
      x.rows,
      x.cols,
      dy.values.map((d, i) => d * (1 - ((y.values[i] as number) / cap) ** 2)),
    );
  return { y, back };
}
