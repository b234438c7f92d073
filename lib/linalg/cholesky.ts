/** Rows of a panel that is factorised together. */
const PANEL = 128;

/** Lower-triangular factor, or the index at which there is none. */
export interface Cholesky {
  /** [n, n] row by row; zeros above the diagonal. */
  readonly l: Float64Array;
  /** The first index whose pivot is not above 0, and that pivot; undefined if `a = l · lᵀ`. */
  readonly failed?: { readonly index: number; readonly pivot: number };
}

/** `rows · rowsᵀ` [m, m] of [m, p]; only its lower triangle is read. */
export type PanelProduct = (rows: Float64Array, m: number, p: number) => ArrayLike<number>;

/**
 * `a = l · lᵀ` in float64, panel by panel: a panel is factorised, and its product with itself is subtracted from what is right of
 * it (Golub and Van Loan, Matrix Computations, section 4.2.5). A pivot that is 0 to float64, or below, ends the work.
 * @param a [n, n] row by row; only the lower triangle is read
 * @param product for matrices in which most of the work are products; by default the host computes them
 */
export function choleskyRows(a: Float64Array, n: number, product?: PanelProduct): Cholesky {
  const l = a.slice();
  for (let i = 0; i < n; i++) l.fill(0, i * n + i + 1, (i + 1) * n);
  let most = 0;
  for (let i = 0; i < n; i++) most = Math.max(most, a[i * n + i] as number);
  for (let begin = 0; begin < n; begin += PANEL) {
    const end = Math.min(begin + PANEL, n);
    for (let j = begin; j < end; j++) {
      const pivot = (l[j * n + j] as number) - dot(l, j * n + begin, j * n + begin, j - begin);
      if (!(pivot > 2 ** -52 * n * most)) return { l, failed: { index: j, pivot } };
      const root = Math.sqrt(pivot);
      l[j * n + j] = root;
      for (let i = j + 1; i < n; i++) {
        const at = i * n + j;
        l[at] = ((l[at] as number) - dot(l, i * n + begin, j * n + begin, j - begin)) / root;
      }
    }
    subtractPanel(l, n, begin, end, product);
  }
  return { l };
}

function dot(l: Float64Array, a: number, b: number, count: number): number {
  let even = 0;
  let odd = 0;
  let k = 0;
  for (; k + 1 < count; k += 2) {
    even += (l[a + k] as number) * (l[b + k] as number);
    odd += (l[a + k + 1] as number) * (l[b + k + 1] as number);
  }
  if (k < count) even += (l[a + k] as number) * (l[b + k] as number);
  return even + odd;
}

/** Subtracts the product of the panel's columns below it from the rest of the lower triangle. */
function subtractPanel(
  l: Float64Array,
  n: number,
  begin: number,
  end: number,
  product: PanelProduct | undefined,
): void {
  const [m, p] = [n - end, end - begin];
  if (m === 0) return;
  const rows = new Float64Array(m * p);
  for (let i = 0; i < m; i++) {
    rows.set(l.subarray((end + i) * n + begin, (end + i) * n + end), i * p);
  }
  const whole = product?.(rows, m, p);
  if (whole !== undefined) {
    for (let i = 0; i < m; i++) {
      const at = (end + i) * n + end;
      for (let j = 0; j <= i; j++) l[at + j] = (l[at + j] as number) - (whole[i * m + j] as number);
    }
    return;
  }
  for (let i = 0; i < m; i += 2) {
    const second = Math.min(i + 1, m - 1);
    for (let j = 0; j <= second; j += 2) {
      const last = Math.min(j + 1, m - 1);
      let [s00, s01, s10, s11] = [0, 0, 0, 0];
      for (let k = 0; k < p; k++) {
        const x0 = rows[i * p + k] as number;
        const x1 = rows[second * p + k] as number;
        const y0 = rows[j * p + k] as number;
        const y1 = rows[last * p + k] as number;
        s00 += x0 * y0;
        s01 += x0 * y1;
        s10 += x1 * y0;
        s11 += x1 * y1;
      }
      const take = (row: number, column: number, sum: number) => {
        const at = (end + row) * n + end + column;
        l[at] = (l[at] as number) - sum;
      };
      take(i, j, s00);
      if (last !== j && last <= i) take(i, last, s01);
      if (second !== i) {
        take(second, j, s10);
        if (last !== j) take(second, last, s11);
      }
    }
  }
}

/**
 * The X [n, m] with `l · x = b`, or `lᵀ · x = b` if transposed, for a lower-triangular l without zeros on its diagonal.
 * @param l [n, n] row by row; only the lower triangle is read
 * @param b [n, m]; it is overwritten with X
 */
export function solveLower(
  l: Float64Array,
  n: number,
  b: Float64Array,
  m: number,
  transposed = false,
): void {
  for (let step = 0; step < n; step++) {
    const i = transposed ? n - 1 - step : step;
    const row = b.subarray(i * m, (i + 1) * m);
    if (!transposed) for (let j = 0; j < i; j++) add(row, b, j * m, -(l[i * n + j] as number));
    const pivot = l[i * n + i] as number;
    for (let k = 0; k < m; k++) row[k] = (row[k] as number) / pivot;
    if (transposed) {
      for (let j = 0; j < i; j++) {
        add(b.subarray(j * m, (j + 1) * m), b, i * m, -(l[i * n + j] as number));
      }
    }
  }
}

/** `row += factor · b`, from b's element `at` on. */
function add(row: Float64Array, b: Float64Array, at: number, factor: number): void {
  if (factor === 0) return;
  for (let k = 0; k < row.length; k++) {
    row[k] = (row[k] as number) + factor * (b[at + k] as number);
  }
}
