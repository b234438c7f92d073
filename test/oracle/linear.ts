/** Matrices in float64, and the products of a frozen base weight, each with its condition sum. */
export interface Matrix {
  readonly rows: number;
  readonly cols: number;
  readonly data: Float64Array; // row-major
}

/** A result and, per element, P = Σ |a · b| over the terms that were added. */
export interface Bounded {
  readonly value: Matrix;
  readonly p: Matrix;
}

export function matrix(rows: number, cols: number, data?: ArrayLike<number>): Matrix {
  const values = data === undefined ? new Float64Array(rows * cols) : new Float64Array(data);
  if (values.length !== rows * cols) {
    throw new Error(`oracle: ${values.length} values for [${rows}, ${cols}]`);
  }
  return { rows, cols, data: values };
}

export function at(m: Matrix, row: number, col: number): number {
  return m.data[row * m.cols + col] as number;
}

export function transpose(m: Matrix): Matrix {
  const out = matrix(m.cols, m.rows);
  for (let row = 0; row < m.rows; row++) {
    for (let col = 0; col < m.cols; col++) out.data[col * m.rows + row] = at(m, row, col);
  }
  return out;
}

export function map(m: Matrix, f: (value: number, index: number) => number): Matrix {
  const data = new Float64Array(m.data.length);
  for (let i = 0; i < data.length; i++) data[i] = f(m.data[i] as number, i);
  return { rows: m.rows, cols: m.cols, data };
}

export const abs = (m: Matrix): Matrix => map(m, Math.abs);
export const scaled = (m: Matrix, factor: number): Matrix => map(m, (value) => value * factor);

export function add(a: Matrix, b: Matrix): Matrix {
  return map(a, (value, i) => value + (b.data[i] as number));
}

export function hadamard(a: Matrix, b: Matrix): Matrix {
  return map(a, (value, i) => value * (b.data[i] as number));
}

/** out[i, j] = Σ_k a[i, k] · b[j, k] */
export function timesTransposed(a: Matrix, b: Matrix): Matrix {
  if (a.cols !== b.cols) throw new Error(`oracle: inner ${a.cols} against ${b.cols}`);
  const out = matrix(a.rows, b.rows);
  const inner = a.cols;
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < b.rows; j++) {
      let sum = 0;
      for (let k = 0; k < inner; k++) {
        sum += (a.data[i * inner + k] as number) * (b.data[j * inner + k] as number);
      }
      out.data[i * b.rows + j] = sum;
    }
  }
  return out;
}

/** out = a · b */
export const times = (a: Matrix, b: Matrix): Matrix => timesTransposed(a, transpose(b));

/** Adds a row to every row. */
export function addRow(m: Matrix, row: Matrix): Matrix {
  return map(m, (value, i) => value + (row.data[i % m.cols] as number));
}

export function columnSums(m: Matrix): Matrix {
  const out = matrix(1, m.cols);
  for (let row = 0; row < m.rows; row++) {
    for (let col = 0; col < m.cols; col++) {
      out.data[col] = (out.data[col] as number) + at(m, row, col);
    }
  }
  return out;
}

/** y = x · wᵀ + bias */
export function matmul64(x: Matrix, w: Matrix, bias?: Matrix): Bounded {
  const value = timesTransposed(x, w);
  const p = timesTransposed(abs(x), abs(w));
  if (bias === undefined) return { value, p };
  return { value: addRow(value, bias), p: addRow(p, abs(bias)) };
}

/** dx = dy · w */
export function matmulInputGrad64(dy: Matrix, w: Matrix): Bounded {
  return { value: times(dy, w), p: times(abs(dy), abs(w)) };
}
