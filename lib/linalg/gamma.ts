/** Above this value the asymptotic series below are exact in float64. */
const FAR = 12;

/**
 * `ln Γ(x)` and its first two derivatives, the digamma and trigamma functions, for x > 0 in float64:
 * recurrence up to x ≥ 12, then Stirling's series (Abramowitz and Stegun, 6.1.40, 6.3.18, 6.4.12).
 */
export function logGamma(x: number): { value: number; digamma: number; trigamma: number } {
  let [value, digamma, trigamma] = [0, 0, 0];
  let z = x;
  for (; z < FAR; z++) {
    value -= Math.log(z);
    digamma -= 1 / z;
    trigamma += 1 / (z * z);
  }
  const u = 1 / (z * z);
  // Bernoulli numbers over 2k (2k - 1), 2k and 1.
  const tail = (c: readonly number[]) => c.reduceRight((sum, each) => each + u * sum, 0);
  const stirling = tail([1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156]);
  value += (z - 0.5) * Math.log(z) - z + 0.5 * Math.log(2 * Math.PI) + stirling / z;
  digamma +=
    Math.log(z) -
    1 / (2 * z) -
    u * tail([1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12]);
  trigamma +=
    1 / z + u / 2 + (u / z) * tail([1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6]);
  return { value, digamma, trigamma };
}
