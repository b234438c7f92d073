/** A symmetric matrix as `qᵀ · t · q`, where t has values on its diagonal and next to it. */
export interface Tridiagonal {
  /** [n] */
  readonly diagonal: Float64Array;
  /** [n - 1] */
  readonly beside: Float64Array;
  /** [n, n] orthogonal, row by row. */
  readonly q: Float64Array;
}

/**
 * Householder's reduction. It builds the rows of q backwards, so that every loop runs along rows (Golub and Van Loan, Matrix
 * Computations, section 8.3.1).
 * @param a [n, n]; only the upper triangle is read; it is overwritten
 */
export function tridiagonalise(a: Float64Array, n: number): Tridiagonal {
  const diagonal = new Float64Array(n);
  const beside = new Float64Array(Math.max(n - 1, 0));
  const betas = new Float64Array(n);
  const p = new Float64Array(n);
  for (let k = 0; k < n - 1; k++) {
    diagonal[k] = a[k * n + k] as number;
    const v = a.subarray(k * n, (k + 1) * n);
    let square = 0;
    for (let j = k + 2; j < n; j++) square += (v[j] as number) ** 2;
    const head = v[k + 1] as number;
    if (square === 0) {
      beside[k] = head;
      continue;
    }
    const norm = Math.sqrt(square + head * head);
    beside[k] = head > 0 ? -norm : norm;
    v[k + 1] = head - (beside[k] as number);
    const beta = 2 / (square + (v[k + 1] as number) ** 2);
    betas[k] = beta;
    multiply(a, v, p, k + 1, n);
    let along = 0;
    for (let j = k + 1; j < n; j++) along += (p[j] as number) * (v[j] as number);
    const share = (beta * beta * along) / 2;
    for (let j = k + 1; j < n; j++) p[j] = beta * (p[j] as number) - share * (v[j] as number);
    for (let i = k + 1; i < n; i++) {
      const vi = v[i] as number;
      const pi = p[i] as number;
      for (let j = i, at = i * n + i; j < n; j++, at++) {
        a[at] = (a[at] as number) - (vi * (p[j] as number) + pi * (v[j] as number));
      }
    }
  }
  diagonal[n - 1] = a[n * n - 1] as number;
  return { diagonal, beside, q: rowsOf(a, betas, n) };
}

/** `p = a · v` from index `first` on, read from the upper triangle of a. */
function multiply(a: Float64Array, v: Float64Array, p: Float64Array, first: number, n: number) {
  p.fill(0, first);
  for (let i = first; i < n; i++) {
    const vi = v[i] as number;
    let sum = (a[i * n + i] as number) * vi;
    for (let j = i + 1, at = i * n + i + 1; j < n; j++, at++) {
      const value = a[at] as number;
      sum += value * (v[j] as number);
      p[j] = (p[j] as number) + value * vi;
    }
    p[i] = (p[i] as number) + sum;
  }
}

/** The product of the reflections whose vectors are in the rows of a, last to first. */
function rowsOf(a: Float64Array, betas: Float64Array, n: number): Float64Array {
  const q = new Float64Array(n * n);
  for (let i = 0; i < n; i++) q[i * n + i] = 1;
  for (let k = n - 2; k >= 0; k--) {
    const beta = betas[k] as number;
    if (beta === 0) continue;
    const v = a.subarray(k * n, (k + 1) * n);
    for (let i = k + 1; i < n; i++) {
      const row = q.subarray(i * n, (i + 1) * n);
      let [even, odd] = [0, 0];
      let j = k + 1;
      for (; j + 1 < n; j += 2) {
        even += (row[j] as number) * (v[j] as number);
        odd += (row[j + 1] as number) * (v[j + 1] as number);
      }
      if (j < n) even += (row[j] as number) * (v[j] as number);
      const factor = beta * (even + odd);
      for (j = k + 1; j < n; j++) row[j] = (row[j] as number) - factor * (v[j] as number);
    }
  }
  return q;
}

/** Maximum steps per value; two are usual. */
const MAX_STEPS = 60;

/**
 * Eigenvalues on the diagonal and eigenvectors as rows of q, in place: implicit QR steps with Wilkinson's shift
 * (Golub and Van Loan, section 8.3.5).
 */
export function diagonalise({ diagonal: d, beside: e, q }: Tridiagonal, n: number): void {
  let steps = MAX_STEPS * n;
  for (let end = n - 1; end > 0; ) {
    let begin = end;
    while (begin > 0) {
      const size = Math.abs(d[begin] as number) + Math.abs(d[begin - 1] as number);
      if (Math.abs(e[begin - 1] as number) <= 2 ** -53 * size) break;
      begin--;
    }
    if (begin > 0) e[begin - 1] = 0;
    if (begin === end || steps-- === 0) end--;
    else step(d, e, q, begin, end, n);
  }
}

function step(
  d: Float64Array,
  e: Float64Array,
  q: Float64Array,
  begin: number,
  end: number,
  n: number,
): void {
  const last = e[end - 1] as number;
  const half = ((d[end - 1] as number) - (d[end] as number)) / 2;
  const root = Math.sqrt(half * half + last * last);
  const shift = (d[end] as number) - last * (last / (half + (half < 0 ? -root : root)));
  let x = (d[begin] as number) - shift;
  let z = e[begin] as number;
  for (let k = begin; k < end; k++) {
    const r = Math.sqrt(x * x + z * z);
    const [c, s] = r === 0 ? [1, 0] : [x / r, z / r];
    if (k > begin) e[k - 1] = r;
    const [a, b, g] = [d[k] as number, e[k] as number, d[k + 1] as number];
    d[k] = c * c * a + 2 * c * s * b + s * s * g;
    d[k + 1] = s * s * a - 2 * c * s * b + c * c * g;
    e[k] = c * s * (g - a) + (c * c - s * s) * b;
    if (k + 1 < end) {
      x = e[k] as number;
      z = s * (e[k + 1] as number);
      e[k + 1] = c * (e[k + 1] as number);
    }
    const upper = k * n;
    const lower = upper + n;
    for (let j = 0; j < n; j++) {
      const u = q[upper + j] as number;
      const v = q[lower + j] as number;
      q[upper + j] = c * u + s * v;
      q[lower + j] = c * v - s * u;
    }
  }
}
