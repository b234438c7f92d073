/** Matrices in float64, row-major: loops and nothing else. */

export interface Matrix {
  readonly rows: number;
  readonly cols: number;
  readonly values: Float64Array;
}

/** What a layer gave, and how the gradient of that becomes the gradient of its input. */
export interface Step<Input = Matrix> {
  readonly y: Matrix;
  readonly back: (dy: Matrix) => Input;
}

export function matrix(
  rows: number,
  cols: number,
  values: Float64Array = new Float64Array(rows * cols),
): Matrix {
  if (values.length !== rows * cols) {
    throw new Error(`${values.length} values for a matrix [${rows}, ${cols}]`);
  }
  return { rows, cols, values };
}

/** a · b */
export function product(a: Matrix, b: Matrix): Matrix {
  if (a.cols !== b.rows) throw new Error(`[${a.rows}, ${a.cols}] · [${b.rows}, ${b.cols}]`);
  const y = matrix(a.rows, b.cols);
  for (let i = 0; i < a.rows; i++) {
    for (let k = 0; k < a.cols; k++) {
      const factor = a.values[i * a.cols + k] as number;
      for (let j = 0; j < b.cols; j++) {
        y.values[i * b.cols + j] =
          (y.values[i * b.cols + j] as number) + factor * (b.values[k * b.cols + j] as number);
      }
    }
  }
  return y;
}

export function transpose(a: Matrix): Matrix {
  const y = matrix(a.cols, a.rows);
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < a.cols; j++) y.values[j * a.rows + i] = a.values[i * a.cols + j] as number;
  }
  return y;
}

/** a + factor · b */
export function add(a: Matrix, b: Matrix, factor = 1): Matrix {
  if (a.rows !== b.rows || a.cols !== b.cols) throw new Error('matrices of two shapes');
  const values = a.values.map((value, i) => value + factor * (b.values[i] as number));
  return matrix(a.rows, a.cols, values);
}

export const scale = (a: Matrix, factor: number): Matrix =>
  matrix(
    a.rows,
    a.cols,
    a.values.map((value) => factor * value),
  );

/** The same values under another shape. */
export const reshape = (a: Matrix, rows: number, cols: number): Matrix =>
  matrix(rows, cols, a.values);

/** Columns begin to end. */
export function columns(a: Matrix, begin: number, end: number): Matrix {
  const y = matrix(a.rows, end - begin);
  for (let i = 0; i < a.rows; i++) {
    y.values.set(a.values.subarray(i * a.cols + begin, i * a.cols + end), i * y.cols);
  }
  return y;
}

/** Matrices of the same rows side by side. */
export function joinColumns(parts: readonly Matrix[]): Matrix {
  const rows = parts[0]?.rows ?? 0;
  const y = matrix(
    rows,
    parts.reduce((sum, { cols }) => sum + cols, 0),
  );
  let begin = 0;
  for (const { cols, values } of parts) {
    for (let i = 0; i < rows; i++) {
      y.values.set(values.subarray(i * cols, (i + 1) * cols), i * y.cols + begin);
    }
    begin += cols;
  }
  return y;
}
