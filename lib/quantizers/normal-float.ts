/** Levels of NormalFloat of any number of bits. */

/** Probability of the outermost quantile of NF4. */
const kOuter = 0.9677083;

/** The standard normal distribution function less a half, by its series. For |x| < 6. */
function halfNormal(x: number): number {
  let [term, sum] = [x, x];
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (x * x) / (2 * n + 1);
    sum += term;
  }
  return (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}

/** The x below which a standard normal value lies with probability p, for p from 0.01 to 0.99. */
function normalQuantile(p: number): number {
  let x = 0;
  for (let i = 0; i < 50; i++) {
    const step = (halfNormal(x) - (p - 0.5)) * Math.sqrt(2 * Math.PI) * Math.exp((x * x) / 2);
    x -= step;
    if (Math.abs(step) < 1e-15) break;
  }
  return x;
}

/** The standard deviation of the normal distribution whose outermost level is 1: what a block divided by its absmax is taken for. */
export const kNormalFloatDeviation = 1 / normalQuantile(kOuter);

/**
 * The ascending levels of NormalFloat within ±1 (Dettmers et al., QLoRA, 2023, arXiv:2305.14314; for any number of bits Guo et
 * al., LQ-LoRA, 2023, arXiv:2311.12023): quantiles of a normal distribution, half of them at or below 0 and one more from 0 on.
 * @param bits 2 to 8; NF4 with 4
 */
export function normalFloatLevels(bits: number): Float32Array {
  const half = 2 ** (bits - 1);
  const at = (p: number) => normalQuantile(p) * kNormalFloatDeviation;
  const below = (i: number) => 1 - kOuter + (i * (kOuter - 0.5)) / (half - 1);
  const above = (i: number) => 0.5 + (i * (kOuter - 0.5)) / half;
  return Float32Array.from({ length: 2 * half }, (_, i) =>
    i < half - 1 ? at(below(i)) : i === half - 1 ? 0 : at(above(i - half + 1)),
  );
}
