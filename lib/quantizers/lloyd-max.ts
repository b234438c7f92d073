/** Levels of a scalar quantiser with the least weighted square error. */

/** Numbers in ascending order, with sums of their weights. */
export class WeightedSamples {
  readonly values: Float64Array;
  /** [n + 1] sums of weights, of weight · value and of weight · value² before each place. */
  readonly #mass: Float64Array;
  readonly #moment: Float64Array;
  readonly #square: Float64Array;

  /** @param weights not negative, with a sum above 0 */
  constructor(values: ArrayLike<number>, weights: ArrayLike<number>) {
    const n = values.length;
    const order = Array.from({ length: n }, (_, i) => i).sort(
      (i, j) => (values[i] as number) - (values[j] as number),
    );
    this.values = Float64Array.from(order, (i) => values[i] as number);
    [this.#mass, this.#moment, this.#square] = [0, 1, 2].map((power) => {
      const sums = new Float64Array(n + 1);
      order.forEach((i, at) => {
        const term = (weights[i] as number) * (values[i] as number) ** power;
        sums[at + 1] = (sums[at] as number) + term;
      });
      return sums;
    }) as [Float64Array, Float64Array, Float64Array];
  }

  /** Their number. */
  get count(): number {
    return this.values.length;
  }

  /** Sum of weights of places from `begin` to `end`. */
  mass(begin: number, end: number): number {
    return (this.#mass[end] as number) - (this.#mass[begin] as number);
  }

  /** Weighted mean of places; undefined without weight. */
  mean(begin: number, end: number): number | undefined {
    const mass = this.mass(begin, end);
    if (!(mass > 0)) return undefined;
    return ((this.#moment[end] as number) - (this.#moment[begin] as number)) / mass;
  }

  /** Σ weight · (value − level)² of places. */
  error(begin: number, end: number, level: number): number {
    const of = (sums: Float64Array) => (sums[end] as number) - (sums[begin] as number);
    const sum = of(this.#square) - 2 * level * of(this.#moment) + level ** 2 * of(this.#mass);
    return Math.max(0, sum);
  }

  /** Number of values up to a bound. */
  upTo(bound: number): number {
    let [low, high] = [0, this.count];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.values[middle] as number) <= bound) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Levels in ascending order, and the error that they leave. */
export interface FittedLevels {
  readonly levels: Float64Array;
  readonly error: number;
}

const kMostRounds = 200;

/** Where the cells of levels end: midpoints between neighbours; a value on one belongs to the lower level. */
function cellsOf(samples: WeightedSamples, levels: Float64Array): number[] {
  const ends = Array.from({ length: levels.length - 1 }, (_, i) =>
    samples.upTo(((levels[i] as number) + (levels[i + 1] as number)) / 2),
  );
  return [0, ...ends, samples.count];
}

/** A run of places, its error about its mean, and the cut that lowers it most. */
interface Run {
  readonly begin: number;
  readonly end: number;
  readonly cut: number;
  readonly gain: number;
}

function runOf(samples: WeightedSamples, begin: number, end: number): Run {
  const errorOf = (from: number, to: number) =>
    samples.error(from, to, samples.mean(from, to) ?? 0);
  const whole = errorOf(begin, end);
  let [cut, gain] = [begin, 0];
  for (let at = begin + 1; at < end; at++) {
    const less = whole - errorOf(begin, at) - errorOf(at, end);
    if (less > gain) [cut, gain] = [at, less];
  }
  return { begin, end, cut, gain };
}

/** Levels to begin with: the run whose best cut gains most is cut, until there are enough. */
function splitLevels(samples: WeightedSamples, count: number): Float64Array {
  const runs = [runOf(samples, 0, samples.count)];
  while (runs.length < count) {
    const best = runs.reduce((a, b) => (b.gain > a.gain ? b : a));
    if (best.gain === 0) break;
    const { begin, cut, end } = best;
    runs.splice(runs.indexOf(best), 1, runOf(samples, begin, cut), runOf(samples, cut, end));
  }
  const means = runs
    .sort((a, b) => a.begin - b.begin)
    .map(({ begin, end }) => samples.mean(begin, end) ?? (samples.values[begin] as number));
  // With fewer different values than levels the last is there several times.
  return Float64Array.from(
    { length: count },
    (_, i) => means[Math.min(i, means.length - 1)] as number,
  );
}

/**
 * The quantiser of Lloyd and Max with weights: in turns, a threshold is the middle of two levels and a level the weighted mean
 * of its values, until no value changes its level. The error falls in every round. The first levels are those of runs of values,
 * cut one by one where the error falls most.
 */
export function lloydMax(samples: WeightedSamples, count: number): FittedLevels {
  const levels = splitLevels(samples, count);
  let before = '';
  for (let round = 0; round < kMostRounds; round++) {
    const cells = cellsOf(samples, levels);
    const now = cells.join();
    if (now === before) break;
    before = now;
    for (let i = 0; i < count; i++) {
      const mean = samples.mean(cells[i] as number, cells[i + 1] as number);
      if (mean !== undefined) levels[i] = mean;
    }
  }
  const cells = cellsOf(samples, levels);
  const error = levels.reduce(
    (sum, level, i) => sum + samples.error(cells[i] as number, cells[i + 1] as number, level),
    0,
  );
  return { levels, error };
}
