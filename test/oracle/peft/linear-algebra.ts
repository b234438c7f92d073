/** Decompositions that PEFT asks of torch, in float64. */
import { Matrix } from '../adapter-layer.js';

/** X with X · a = b. */
export function solveRight(b: Matrix, a: Matrix): Matrix {
  // aᵀ · Xᵀ = bᵀ, by elimination with row pivots.
  const n = a.rows;
  const left = a.transposed().data.slice();
  const right = b.transposed().data.slice();
  const m = b.rows;
  const swap = (data: Float64Array, cols: number, i: number, j: number) => {
    for (let k = 0; k < cols; k++) {
      const held = data[i * cols + k] as number;
      data[i * cols + k] = data[j * cols + k] as number;
      data[j * cols + k] = held;
    }
  };
  const row = (data: Float64Array, cols: number, to: number, from: number, factor: number) => {
    for (let k = 0; k < cols; k++) {
      data[to * cols + k] =
        (data[to * cols + k] as number) - factor * (data[from * cols + k] as number);
    }
  };
  for (let i = 0; i < n; i++) {
    let pivot = i;
    for (let j = i + 1; j < n; j++) {
      if (Math.abs(left[j * n + i] as number) > Math.abs(left[pivot * n + i] as number)) pivot = j;
    }
    swap(left, n, i, pivot);
    swap(right, m, i, pivot);
    for (let j = 0; j < n; j++) {
      if (j === i) continue;
      const factor = (left[j * n + i] as number) / (left[i * n + i] as number);
      if (factor === 0) continue;
      row(left, n, j, i, factor);
      row(right, m, j, i, factor);
    }
  }
  const solved = new Matrix(
    n,
    m,
    right.map((v, at) => v / (left[Math.floor(at / m) * (n + 1)] as number)),
  );
  return solved.transposed();
}

/** The orthonormal columns of a QR decomposition by reflections, with the signs that LAPACK's have. */
export function orthonormalColumns(a: Matrix): Matrix {
  const rest = a.data.slice();
  const at = (i: number, j: number) => rest[i * a.cols + j] as number;
  const mirrors: Float64Array[] = [];
  for (let j = 0; j < a.cols; j++) {
    const v = Float64Array.from({ length: a.rows }, (_, i) => (i < j ? 0 : at(i, j)));
    const norm = Math.hypot(...v);
    v[j] = (v[j] as number) + ((v[j] as number) < 0 ? -norm : norm);
    mirrors.push(v);
    reflect(rest, a.cols, v);
  }
  const out = Matrix.of(a.rows, a.cols, (i, j) => (i === j ? 1 : 0));
  for (const v of mirrors.reverse()) reflect(out.data, a.cols, v);
  return out;
}

/** (I - 2 v vᵀ / vᵀv) · a, in place. */
function reflect(a: Float64Array, cols: number, v: Float64Array): void {
  const length = v.reduce((sum, value) => sum + value * value, 0);
  for (let j = 0; j < cols; j++) {
    const share = v.reduce((sum, value, i) => sum + value * (a[i * cols + j] as number), 0);
    v.forEach((value, i) => {
      a[i * cols + j] = (a[i * cols + j] as number) - (2 * share * value) / length;
    });
  }
}

export interface Svd {
  /** [N, d], d = min(N, K) */
  readonly u: Matrix;
  /** Descending. */
  readonly s: Float64Array;
  /** [d, K] */
  readonly vt: Matrix;
}

/** By rotations of pairs of columns until they are orthogonal (Jacobi, one-sided). Signs are arbitrary, as torch's are. */
export function svd(a: Matrix): Svd {
  if (a.rows < a.cols) {
    const { u, s, vt } = svd(a.transposed());
    return { u: vt.transposed(), s, vt: u.transposed() };
  }
  const [n, d] = [a.rows, a.cols];
  const columns = Array.from({ length: d }, (_, j) =>
    Float64Array.from({ length: n }, (_v, i) => a.at(i, j)),
  );
  const right = Array.from({ length: d }, (_, j) =>
    Float64Array.from({ length: d }, (_v, i) => (i === j ? 1 : 0)),
  );
  const dot = (p: Float64Array, q: Float64Array) =>
    p.reduce((sum, v, i) => sum + v * (q[i] as number), 0);
  const turn = (p: Float64Array, q: Float64Array, c: number, s: number) => {
    p.forEach((v, i) => {
      const w = q[i] as number;
      p[i] = c * v - s * w;
      q[i] = s * v + c * w;
    });
  };
  for (let sweep = 0, moved = true; moved && sweep < 60; sweep++) {
    moved = false;
    for (let i = 0; i < d; i++) {
      for (let j = i + 1; j < d; j++) {
        const [p, q] = [columns[i], columns[j]] as [Float64Array, Float64Array];
        const [alpha, beta, gamma] = [dot(p, p), dot(q, q), dot(p, q)];
        if (Math.abs(gamma) <= 1e-15 * Math.sqrt(alpha * beta)) continue;
        moved = true;
        const zeta = (beta - alpha) / (2 * gamma);
        const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const c = 1 / Math.sqrt(1 + t * t);
        turn(p, q, c, c * t);
        turn(right[i] as Float64Array, right[j] as Float64Array, c, c * t);
      }
    }
  }
  const norms = columns.map((column) => Math.hypot(...column));
  const order = norms.map((_, j) => j).sort((i, j) => (norms[j] as number) - (norms[i] as number));
  const s = Float64Array.from(order, (j) => norms[j] as number);
  return {
    u: Matrix.of(
      n,
      d,
      (i, j) => ((columns[order[j] as number] as Float64Array)[i] as number) / (s[j] || 1),
    ),
    s,
    vt: Matrix.of(d, d, (j, k) => (right[order[j] as number] as Float64Array)[k] as number),
  };
}

/** The sum of the singular triplets `from` to `to`. */
export function triplets({ u, s, vt }: Svd, from: number, to: number): Matrix {
  const count = Math.max(0, to - from);
  const left = Matrix.of(u.rows, count, (i, j) => u.at(i, from + j) * (s[from + j] as number));
  return left.times(Matrix.of(count, vt.cols, (i, j) => vt.at(from + i, j)));
}

/** Square blocks along the diagonal. */
export function blockDiagonal(blocks: readonly Matrix[]): Matrix {
  const size = blocks.reduce((sum, { rows }) => sum + rows, 0);
  const out = Matrix.zeros(size, size);
  let at = 0;
  for (const block of blocks) {
    for (let i = 0; i < block.rows; i++) {
      for (let j = 0; j < block.cols; j++) out.data[(at + i) * size + at + j] = block.at(i, j);
    }
    at += block.rows;
  }
  return out;
}

/** Skew-symmetric, with the values above the diagonal, row by row. */
export function skewOf(values: ArrayLike<number>, from: number, size: number): Matrix {
  const out = Matrix.zeros(size, size);
  let at = from;
  for (let i = 0; i < size; i++) {
    for (let j = i + 1; j < size; j++) {
      out.data[i * size + j] = values[at] as number;
      out.data[j * size + i] = -(values[at++] as number);
    }
  }
  return out;
}

/** (I - Q)(I + Q)⁻¹ */
export function cayley(q: Matrix): Matrix {
  const eye = Matrix.identity(q.rows);
  return solveRight(eye.plus(q, -1), eye.plus(q));
}

/** The first terms of the series of (I + Q)(I - Q)⁻¹, the last of them once and those between twice. */
export function cayleySeries(q: Matrix, terms: number): Matrix {
  let sum = Matrix.identity(q.rows);
  if (terms <= 1) return sum;
  sum = sum.plus(q, 2);
  if (terms === 2) return sum;
  let power = q.times(q);
  sum = sum.plus(power, 2);
  for (let i = 3; i < terms - 1; i++) {
    power = power.times(q);
    sum = sum.plus(power, 2);
  }
  return sum.plus(power.times(q));
}
