/** What the formulas of several adapter methods are made of. */

import { Matrix, type OracleLayer, parts } from './adapter-layer.js';

/** W + scale · left · right */
export const lowRank = ({ w }: OracleLayer, left: Matrix, right: Matrix, scale: number) => ({
  weight: w.plus(left.times(right), scale),
});

export const norms = (rows: Matrix): Float64Array =>
  Float64Array.from({ length: rows.rows }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < rows.cols; j++) sum += rows.at(i, j) ** 2;
    return Math.sqrt(sum);
  });

export const hadamard = (a: Matrix, b: Matrix): Matrix => a.map((v, i, j) => v * b.at(i, j));

/** A table of the layer. */
export function table({ indexes }: OracleLayer, name: string): Int32Array {
  const found = indexes[name];
  if (found === undefined) throw new Error(`no table ${name}`);
  return found;
}

/** The coefficients at their places in an [N, K] of zeros. */
export function scattered(layer: OracleLayer, places: ArrayLike<number>, values: Matrix): Matrix {
  const full = Matrix.zeros(layer.N, layer.K);
  Array.from(places).forEach((place, i) => {
    full.data[place] = (full.data[place] as number) + (values.data[i] as number);
  });
  return full;
}

/** By Gauss and Jordan, with the largest pivot. */
export function inverse(a: Matrix): Matrix {
  const n = a.rows;
  const rows = Array.from({ length: n }, (_, i) =>
    Array.from({ length: 2 * n }, (_, j) => (j < n ? a.at(i, j) : j - n === i ? 1 : 0)),
  );
  for (let c = 0; c < n; c++) {
    let best = c;
    for (let i = c; i < n; i++) {
      if (Math.abs(rows[i]?.[c] ?? 0) > Math.abs(rows[best]?.[c] ?? 0)) best = i;
    }
    [rows[c], rows[best]] = [rows[best] as number[], rows[c] as number[]];
    const pivot = rows[c] as number[];
    const lead = pivot[c] as number;
    for (let j = 0; j < 2 * n; j++) pivot[j] = (pivot[j] as number) / lead;
    for (const row of rows) {
      const factor = row === pivot ? 0 : (row[c] as number);
      for (let j = 0; j < 2 * n; j++) row[j] = (row[j] as number) - factor * (pivot[j] as number);
    }
  }
  return Matrix.of(n, n, (i, j) => rows[i]?.[n + j] as number);
}

/** Matrices on the diagonal, zeros elsewhere. */
export function blockDiagonal(blocks: readonly Matrix[]): Matrix {
  const rows = blocks.reduce((sum, block) => sum + block.rows, 0);
  const cols = blocks.reduce((sum, block) => sum + block.cols, 0);
  const whole = Matrix.zeros(rows, cols);
  let [top, left] = [0, 0];
  for (const block of blocks) {
    for (let i = 0; i < block.rows; i++) {
      for (let j = 0; j < block.cols; j++) {
        whole.data[(top + i) * cols + left + j] = block.at(i, j);
      }
    }
    top += block.rows;
    left += block.cols;
  }
  return whole;
}

/** Matrix g of a stack whose rows follow each other. */
export const slab = (stack: Matrix, g: number, rows: number): Matrix =>
  Matrix.of(rows, stack.cols, (i, j) => stack.at(g * rows + i, j));

/** The skew-symmetric matrix with these entries above its diagonal, row by row. */
export function skewOf(entries: ArrayLike<number>, n: number): Matrix {
  const q = Matrix.zeros(n, n);
  let at = 0;
  for (let i = 0; i < n; i++) {
    for (let j = i + 1; j < n; j++) {
      q.data[i * n + j] = entries[at] as number;
      q.data[j * n + i] = -(entries[at] as number);
      at += 1;
    }
  }
  return q;
}

/** (I - Q)(I + Q)⁻¹ */
export const cayleyOf = (q: Matrix): Matrix => {
  const eye = Matrix.identity(q.rows);
  return eye.plus(q, -1).times(inverse(eye.plus(q)));
};

/** PEFT's cut of the series of (I + Q)(I - Q)⁻¹. */
export function seriesOf(q: Matrix, terms: number): Matrix {
  const degree = terms <= 2 ? terms - 1 : Math.max(3, terms - 1);
  let sum = Matrix.identity(q.rows);
  let power = sum;
  for (let d = 1; d <= degree; d++) {
    power = power.times(q);
    sum = sum.plus(power, d === degree && degree > 1 ? 1 : 2);
  }
  return sum;
}

/** Adds to w the update whose entry (n, k) is given. */
export const added = ({ w }: OracleLayer, update: (n: number, k: number) => number) => ({
  weight: w.map((v, n, k) => v + update(n, k)),
});

export const sum = (count: number, term: (i: number) => number): number => {
  let total = 0;
  for (let i = 0; i < count; i++) total += term(i);
  return total;
};

/** Entry (n, k) of a Kronecker product. */
export const kron =
  (left: Matrix, right: Matrix) =>
  (n: number, k: number): number =>
    left.at(Math.floor(n / right.rows), Math.floor(k / right.cols)) *
    right.at(n % right.rows, k % right.cols);

/** Rows [from, to) of a matrix. */
export const rows = (m: Matrix, from: number, to: number): Matrix =>
  Matrix.of(to - from, m.cols, (i, j) => m.at(from + i, j));

export const columns = (m: Matrix, from: number, to: number): Matrix =>
  Matrix.of(m.rows, to - from, (i, j) => m.at(i, from + j));

/** Softmax of each row over its k largest; k = 0 keeps all. */
export function softmaxTop(logits: Matrix, k: number): Matrix {
  return Matrix.of(logits.rows, logits.cols, (i, e) => {
    const row = Array.from({ length: logits.cols }, (_, j) => logits.at(i, j));
    const kept = largest(row, k === 0 ? row.length : k);
    if (!kept.includes(e)) return 0;
    const sum = kept.reduce((total, j) => total + Math.exp(row[j] as number), 0);
    return Math.exp(row[e] as number) / sum;
  });
}

export const largest = (row: readonly number[], k: number): number[] =>
  row
    .map((_, j) => j)
    .sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
    .slice(0, k);

/** Σₑ gₑ · scaleₑ · (x · Aₑᵀ) · Bₑᵀ, experts one by one. */
export function mixture(
  x: Matrix,
  gates: Matrix,
  experts: readonly { a: Matrix; b: Matrix; scale: number }[],
): Matrix {
  const N = experts[0]?.b.rows ?? 0;
  return experts.reduce(
    (sum, { a, b, scale }, e) => {
      const own = x.times(a.transposed()).times(b.transposed());
      return sum.plus(
        own.map((v, m) => v * gates.at(gates.rows === 1 ? 0 : m, e)),
        scale,
      );
    },
    Matrix.zeros(x.rows, N),
  );
}

/** Experts of given ranks and scalings, whose factors lie side by side. */
export function expertsOf(layer: OracleLayer): { a: Matrix; b: Matrix; scale: number }[] {
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { ranks, scalings } = layer.config;
  let from = 0;
  return (ranks as number[]).map((r, e) => {
    const own = { a: rows(a, from, from + r), b: columns(b, from, from + r) };
    from += r;
    return { ...own, scale: (scalings as number[])[e] as number };
  });
}

/** An input of the call. */
export const given = (inputs: Readonly<Record<string, Matrix>>, name: string): Matrix => {
  const found = inputs[name];
  if (found === undefined) throw new Error(`no input ${name}`);
  return found;
};
