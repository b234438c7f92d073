/**
 * The divergence of a fractional order as other accountants sum it: Mironov, Talwar and Zhang, 2019, arXiv:1908.10530, section
 * 3.3. Both stop at the first terms below e⁻³⁰, which leaves errors of some 1e-6 where the divergence is small.
 */

/** log erfc(x), to about 14 digits. */
function logErfc(x: number): number {
  if (x < 0) return Math.log(2 - Math.exp(logErfc(-x)));
  const square = x * x;
  if (x < 2) {
    // erf(x) = 2 / √π · e^(−x²) Σ 2ⁿ x^(2n + 1) / (2n + 1)!!
    let term = x;
    let sum = x;
    for (let n = 1; term > 1e-18 * sum; n++) {
      term *= (2 * square) / (2 * n + 1);
      sum += term;
    }
    return Math.log1p((-2 / Math.sqrt(Math.PI)) * Math.exp(-square) * sum);
  }
  // erfc(x) = e^(−x²) / √π · 1 / (x + (1/2) / (x + (2/2) / (x + ...)))
  let tail = x;
  for (let n = 120; n >= 1; n--) tail = x + n / 2 / tail;
  return -square - 0.5 * Math.log(Math.PI) - Math.log(tail);
}

/**
 * log A / (α − 1) with A as the sum of two series of terms binomial(α, i), whose signs alternate from i > α on.
 * @param magnitudes adds all terms as if they were positive, which is an upper bound
 */
export function seriesDivergence(
  q: number,
  sigma: number,
  order: number,
  magnitudes: boolean,
): number {
  const variance = sigma * sigma;
  const middle = variance * Math.log(1 / q - 1) + 0.5;
  const scale = Math.SQRT2 * sigma;
  const logs: number[] = [];
  const signs: number[] = [];
  let binomial = 0;
  let sign = 1;
  for (let i = 0; ; i++) {
    const j = order - i;
    const of = (up: number, down: number, far: number): number =>
      binomial +
      up * Math.log(q) +
      down * Math.log1p(-q) +
      (up * up - up) / (2 * variance) +
      logErfc(far / scale) -
      Math.LN2;
    const [low, high] = [of(i, j, i - middle), of(j, i, middle - j)];
    logs.push(low, high);
    signs.push(sign, sign);
    if (Math.max(low, high) < -30) break;
    binomial += Math.log(Math.abs(j) / (i + 1));
    if (j < 0 && !magnitudes) sign = -sign;
  }
  const largest = logs.reduce((a, b) => Math.max(a, b));
  const sum = logs.reduce(
    (total, log, i) => total + (signs[i] as number) * Math.exp(log - largest),
    0,
  );
  return (largest + Math.log(sum)) / (order - 1);
}
