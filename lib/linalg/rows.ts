/**
 * Products and bases of row-major float64 matrices, on the host. Loops run along rows with several sums at once, because
 * a chain of dependent additions would take most of the time. The order of the terms is fixed.
 */

/** `a · bᵀ` [p, q] of rows a [p, n] and b [q, n]. */
export function rowDots(
  a: Float64Array,
  p: number,
  b: Float64Array,
  q: number,
  n: number,
): Float64Array {
  const out = new Float64Array(p * q);
  for (let i = 0; i < p; i += 2) {
    const a0 = i * n;
    const a1 = Math.min(i + 1, p - 1) * n;
    for (let j = 0; j < q; j += 2) {
      const b0 = j * n;
      const b1 = Math.min(j + 1, q - 1) * n;
      let s00 = 0;
      let s01 = 0;
      let s10 = 0;
      let s11 = 0;
      for (let k = 0; k < n; k++) {
        const x0 = a[a0 + k] as number;
        const x1 = a[a1 + k] as number;
        const y0 = b[b0 + k] as number;
        const y1 = b[b1 + k] as number;
        s00 += x0 * y0;
        s01 += x0 * y1;
        s10 += x1 * y0;
        s11 += x1 * y1;
      }
      out[i * q + j] = s00;
      if (j + 1 < q) out[i * q + j + 1] = s01;
      if (i + 1 < p) out[(i + 1) * q + j] = s10;
      if (i + 1 < p && j + 1 < q) out[(i + 1) * q + j + 1] = s11;
    }
  }
  return out;
}

/** `a -= c · b` for rows a [p, n], b [q, n] and c [p, q]. a may share b's memory, except for the rows that are read. */
export function subtractProduct(
  a: Float64Array,
  p: number,
  c: Float64Array,
  b: Float64Array,
  q: number,
  n: number,
): void {
  for (let i = 0; i < p; i += 2) {
    const a0 = i * n;
    const pair = i + 1 < p;
    const a1 = pair ? a0 + n : a0;
    for (let j = 0; j < q; j += 2) {
      const b0 = j * n;
      // If the count is odd, the last row is used twice, the second time multiplied by zero.
      const b1 = Math.min(j + 1, q - 1) * n;
      const has = j + 1 < q;
      const at = i * q + j;
      const c00 = c[at] as number;
      const c01 = has ? (c[at + 1] as number) : 0;
      if (!pair) {
        for (let k = 0; k < n; k++) {
          const off = c00 * (b[b0 + k] as number) + c01 * (b[b1 + k] as number);
          a[a0 + k] = (a[a0 + k] as number) - off;
        }
        continue;
      }
      const c10 = c[at + q] as number;
      const c11 = has ? (c[at + q + 1] as number) : 0;
      for (let k = 0; k < n; k++) {
        const y0 = b[b0 + k] as number;
        const y1 = b[b1 + k] as number;
        a[a0 + k] = (a[a0 + k] as number) - (c00 * y0 + c01 * y1);
        a[a1 + k] = (a[a1 + k] as number) - (c10 * y0 + c11 * y1);
      }
    }
  }
}

/** Transposes rows [p, n] to [n, p]. */
export function transposed(a: Float64Array, p: number, n: number): Float64Array {
  const out = new Float64Array(a.length);
  for (let i = 0; i < p; i++) {
    for (let k = 0; k < n; k++) out[k * p + i] = a[i * n + k] as number;
  }
  return out;
}

/** Rows that are orthogonalised together against those before them. */
const BLOCK = 16;

/**
 * Makes rows [p, n] orthonormal in place, by classical Gram-Schmidt in blocks, run twice to remove the error of cancellation
 * (Giraud et al., The loss of orthogonality in the Gram-Schmidt orthogonalization process, 2005). A row that is in the span of
 * earlier rows becomes zero.
 * @param from the rows before this one are orthonormal already
 */
export function orthonormalise(rows: Float64Array, p: number, n: number, from = 0): void {
  for (let first = from; first < p; first += BLOCK) {
    const end = Math.min(first + BLOCK, p);
    const block = rows.subarray(first * n, end * n);
    const before = rows.subarray(0, first * n);
    for (let pass = 0; pass < 2; pass++) {
      const inside = rowDots(block, end - first, before, first, n);
      subtractProduct(block, end - first, inside, before, first, n);
    }
    for (let i = first; i < end; i++) {
      const row = rows.subarray(i * n, (i + 1) * n);
      const others = rows.subarray(first * n, i * n);
      for (let pass = 0; pass < 2; pass++) {
        subtractProduct(row, 1, rowDots(row, 1, others, i - first, n), others, i - first, n);
      }
      let norm = 0;
      for (const value of row) norm += value * value;
      const scale = norm > 1e-30 ? 1 / Math.sqrt(norm) : 0;
      for (let k = 0; k < n; k++) row[k] = (row[k] as number) * scale;
    }
  }
}
