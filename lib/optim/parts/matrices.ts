/** Small matrices of optimisers of factor pairs, row by row in float64. */

import { rowDots, transposed } from '../../linalg/rows.js';
import { smallSvd } from '../../linalg/small-svd.js';
import { symmetricEigen } from '../../linalg/symmetric-eigen.js';

/** `a · b` [p, n] of a [p, q] and b [q, n]: rows of b, four at a time. The order of the terms is fixed. */
export function product(
  a: Float64Array,
  p: number,
  q: number,
  b: Float64Array,
  n: number,
): Float64Array {
  // Long rows of b are added up; for a short b, whose rows would be too many, its columns are multiplied.
  if (n < q) return rowDots(a, p, transposed(b, q, n), n, q);
  const out = new Float64Array(p * n);
  for (let i = 0; i < p; i++) {
    const row = out.subarray(i * n, (i + 1) * n);
    let k = 0;
    for (; k + 4 <= q; k += 4) {
      const at = i * q + k;
      const [f0, f1, f2, f3] = a.subarray(at, at + 4) as unknown as [
        number,
        number,
        number,
        number,
      ];
      const [b0, b1, b2, b3] = [k * n, (k + 1) * n, (k + 2) * n, (k + 3) * n];
      for (let j = 0; j < n; j++) {
        row[j] =
          (row[j] as number) +
          (f0 * (b[b0 + j] as number) + f1 * (b[b1 + j] as number)) +
          (f2 * (b[b2 + j] as number) + f3 * (b[b3 + j] as number));
      }
    }
    for (; k < q; k++) {
      const factor = a[i * q + k] as number;
      for (let j = 0; j < n; j++) {
        row[j] = (row[j] as number) + factor * (b[k * n + j] as number);
      }
    }
  }
  return out;
}

/** The factors of a layer as matrices of few rows: loraA [r, K], and loraB transposed [r, N]. */
export function factorRows({
  a,
  b,
  r,
  outFeatures,
}: {
  readonly a: { readonly p: Float32Array };
  readonly b: { readonly p: Float32Array };
  readonly r: number;
  readonly outFeatures: number;
}): { readonly a: Float64Array; readonly b: Float64Array } {
  return {
    a: Float64Array.from(a.p),
    b: transposed(Float64Array.from(b.p), outFeatures, r),
  };
}

/** `rows · rowsᵀ + damping · I`, [r, r]. */
export function gram(rows: Float64Array, r: number, n: number, damping = 0): Float64Array {
  const out = rowDots(rows, r, rows, r, n);
  for (let i = 0; i < r; i++) out[i * r + i] = (out[i * r + i] as number) + damping;
  return out;
}

/** The pseudo-inverse of a symmetric [r, r]; eigenvalues below r · 2^-52 of the largest count as 0. */
export function symmetricInverse(a: Float64Array, r: number): Float64Array {
  return symmetricFunction(a, r, (value, largest) =>
    Math.abs(value) > r * 2 ** -52 * largest ? 1 / value : 0,
  );
}

/** `Σ f(value) · vectorᵀ · vector` over the eigenvalues of a symmetric [r, r]. */
export function symmetricFunction(
  a: Float64Array,
  r: number,
  f: (value: number, largest: number) => number,
): Float64Array {
  const { values, vectors } = symmetricEigen(a, r);
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const scaled = vectors.slice();
  for (let i = 0; i < r; i++) {
    const factor = f(values[i] as number, largest);
    for (let k = 0; k < r; k++) scaled[i * r + k] = (scaled[i * r + k] as number) * factor;
  }
  return rowDots(transposed(vectors, r, r), r, transposed(scaled, r, r), r, r);
}

/** The pseudo-inverse [n, m] of a small [m, n]. */
export function inverse(a: Float64Array, m: number, n: number): Float64Array {
  const { u, s, v } = smallSvd(a, m, n);
  const out = new Float64Array(n * m);
  const least = Math.max(m, n) * 2 ** -52 * (s[0] ?? 0);
  for (const [i, size] of s.entries()) {
    if (size <= least) continue;
    for (let k = 0; k < n; k++) {
      const factor = (v[i * n + k] as number) / size;
      for (let j = 0; j < m; j++) {
        out[k * m + j] = (out[k * m + j] as number) + factor * (u[i * m + j] as number);
      }
    }
  }
  return out;
}

/** X [r, r] with `a · X + X · b = c` for symmetric a and b without eigenvalues that add up to 0. */
export function sylvester(
  a: Float64Array,
  b: Float64Array,
  c: Float64Array,
  r: number,
): Float64Array {
  const [left, right] = [symmetricEigen(a, r), symmetricEigen(b, r)];
  const turned = product(
    product(left.vectors, r, r, c, r),
    r,
    r,
    transposed(right.vectors, r, r),
    r,
  );
  for (let i = 0; i < r; i++) {
    for (let j = 0; j < r; j++) {
      const sum = (left.values[i] as number) + (right.values[j] as number);
      turned[i * r + j] = sum === 0 ? 0 : (turned[i * r + j] as number) / sum;
    }
  }
  return product(product(transposed(left.vectors, r, r), r, r, turned, r), r, r, right.vectors, r);
}
