/**
 * Statistics of times. Only order statistics, because times are skewed and their mean says little.
 */

/** A quantile by linear interpolation between the two nearest order statistics (Hyndman-Fan type 7). */
export function quantile(values: readonly number[], share: number): number {
  const sorted = ascending(values);
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  const [a, b] = [sorted[low] ?? Number.NaN, sorted[high] ?? Number.NaN];
  return a + (at - low) * (b - a);
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** An interval that contains the median with at least this confidence. */
export interface Interval {
  readonly low: number;
  readonly high: number;
  /** Its actual confidence, 0 to 1: order statistics come in steps. */
  readonly confidence: number;
}

/**
 * The narrowest symmetric interval between two order statistics that contains the median of the
 * distribution with the wanted confidence, for any distribution: the number of samples below the
 * median is binomial. With too few samples for that, it is minimum to maximum, with their
 * confidence.
 */
export function medianInterval(values: readonly number[], wanted = 0.95): Interval {
  const sorted = ascending(values);
  const n = sorted.length;
  if (n === 0) return { low: Number.NaN, high: Number.NaN, confidence: 0 };
  // term = P(exactly `drop` samples below the median); tail = P(at most `drop`).
  let term = 0.5 ** n;
  let tail = term;
  let drop = 0;
  let outside = n === 1 ? 1 : 2 * tail;
  while (drop + 1 <= (n - 1) / 2) {
    const next = (term * (n - drop)) / (drop + 1);
    if (1 - 2 * (tail + next) < wanted) break;
    drop++;
    term = next;
    tail += next;
    outside = 2 * tail;
  }
  return {
    low: sorted[drop] as number,
    high: sorted[n - 1 - drop] as number,
    confidence: 1 - outside,
  };
}

/** Number of samples outside Tukey's fences: 1.5 times the interquartile range from the quartiles. */
export function outliers(values: readonly number[]): number {
  const [q1, q3] = [quantile(values, 0.25), quantile(values, 0.75)];
  const reach = 1.5 * (q3 - q1);
  return values.filter((value) => value < q1 - reach || value > q3 + reach).length;
}

/** Fewer clean samples say nothing about a median. */
export const kFewestClean = 3;

/** All of the above. */
export interface Summary {
  readonly samples: number;
  readonly median: number;
  readonly p10: number;
  readonly p90: number;
  readonly interval: Interval;
  readonly outliers: number;
}

export function summarize(values: readonly number[]): Summary {
  return {
    samples: values.length,
    median: median(values),
    p10: quantile(values, 0.1),
    p90: quantile(values, 0.9),
    interval: medianInterval(values),
    outliers: outliers(values),
  };
}

function ascending(values: readonly number[]): number[] {
  return [...values].sort((a, b) => a - b);
}
