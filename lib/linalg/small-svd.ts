/** Maximum sweeps over all pairs of rows. Convergence is quadratic: ten are enough for some hundred rows. */
const MAX_SWEEPS = 40;

/** Result of {@link smallSvd}: `a = Σᵢ u[i]ᵀ · s[i] · v[i]`. */
export interface SmallSvd {
  /** [q, m] rows of length 1. */
  readonly u: Float64Array;
  /** [q] descending, above 0. */
  readonly s: Float64Array;
  /** [q, n] rows of length 1. */
  readonly v: Float64Array;
}

/**
 * All singular triplets of a small matrix, on the host in float64, by one-sided Jacobi rotations of the rows. Small values are as
 * exact as float64 allows: nothing is squared (Demmel and Veselić, Jacobi's method is more accurate than QR, 1992). Triplets
 * whose value is 0 are left out.
 * @param a [m, n] row by row
 */
export function smallSvd(a: Float64Array, m: number, n: number): SmallSvd {
  const rows = a.slice();
  const turns = new Float64Array(m * m);
  for (let i = 0; i < m; i++) turns[i * m + i] = 1;
  for (let sweep = 0; sweep < MAX_SWEEPS && turnAll(rows, turns, m, n); sweep++);
  const norms = Float64Array.from({ length: m }, (_, i) => lengthOf(rows, i * n, n));
  const largest = norms.reduce((most, norm) => Math.max(most, norm), 0);
  const order = Array.from({ length: m }, (_, i) => i)
    .filter((i) => (norms[i] as number) > largest * 2 ** -52)
    .sort((i, j) => (norms[j] as number) - (norms[i] as number) || i - j);
  const u = new Float64Array(order.length * m);
  const v = new Float64Array(order.length * n);
  order.forEach((from, to) => {
    u.set(turns.subarray(from * m, (from + 1) * m), to * m);
    const norm = norms[from] as number;
    for (let k = 0; k < n; k++) v[to * n + k] = (rows[from * n + k] as number) / norm;
  });
  return { u, s: Float64Array.from(order, (i) => norms[i] as number), v };
}

/** The length of n values. A power of two keeps squares in range, and is in range itself. */
export function lengthOf(values: Float64Array, at: number, n: number): number {
  let most = 0;
  for (let k = at; k < at + n; k++) most = Math.max(most, Math.abs(values[k] as number));
  if (most === 0) return 0;
  const scale = 2 ** Math.min(-Math.floor(Math.log2(most)), 1000);
  let sum = 0;
  for (let k = at; k < at + n; k++) sum += ((values[k] as number) * scale) ** 2;
  return Math.sqrt(sum) / scale;
}

/** One sweep over all pairs of rows. Returns false if all of them are orthogonal to float64. */
function turnAll(rows: Float64Array, turns: Float64Array, m: number, n: number): boolean {
  let turned = false;
  for (let i = 0; i < m; i++) {
    for (let j = i + 1; j < m; j++) {
      let [own, other, both] = [0, 0, 0];
      for (let k = 0, a = i * n, b = j * n; k < n; k++, a++, b++) {
        const x = rows[a] as number;
        const y = rows[b] as number;
        own += x * x;
        other += y * y;
        both += x * y;
      }
      if (Math.abs(both) <= 2 ** -52 * Math.sqrt(own * other)) continue;
      turned = true;
      const theta = (other - own) / (2 * both);
      const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
      const c = 1 / Math.hypot(t, 1);
      turn(rows, i * n, j * n, n, c, c * t);
      turn(turns, i * m, j * m, m, c, c * t);
    }
  }
  return turned;
}

function turn(x: Float64Array, i: number, j: number, n: number, c: number, s: number): void {
  for (let k = 0; k < n; k++) {
    const a = x[i + k] as number;
    const b = x[j + k] as number;
    x[i + k] = c * a - s * b;
    x[j + k] = s * a + c * b;
  }
}
