/**
 * Comparators. Each returns a report and throws an Error that says where and by how much.
 *
 * `bound`: |y − y64| ≤ c · u · P + half an ulp of the output type, u = 2^-24, P = Σ |a · b|.
 */
import { largest, type OracleDType, ulp } from './dtypes.js';
import type { Bounded } from './linear.js';

/** Unit of f32 accumulation. */
export const U32 = 2 ** -24;
/** The promise of `cpu` and `reference` for inner dimensions up to 65,536. */
export const C_MAX = 16;

/** A sum as the promise tells it apart. */
export interface Sum {
  /** Products that are added. */
  readonly terms: number;
  /** Of the activations. */
  readonly dtype: OracleDType;
  /**
   * What is summed: a product with the base weight, an adapter's h or dh (over K or N), or the gradient of a
   * factor (over the rows).
   */
  readonly of: 'product' | 'adapter' | 'factor gradient';
  /** Of an adapter whose term is added. */
  readonly rank?: number;
}

/**
 * c of a device: `|y − y64| ≤ c · u · P`. A tensor core cuts off every product at the last bit that it keeps below
 * its largest term, and the sum at f32: at most 10 u · P for eight terms (docs/gpu-design.md, "Bits"). Sums over f32
 * activations are those of f32 arithmetic there too, some terms in a row and those sums in a row.
 */
export function promised(device: string, sum: Sum): number {
  const { terms, dtype, of, rank = 0 } = sum;
  if (!device.startsWith('cuda')) return C_MAX;
  // Where an adapter's term is added, the error of its h or dh comes on top.
  const sums = rank === 0 ? 1 : 2;
  if (dtype === 'f32') return 2 * C_MAX * sums;
  if (of === 'factor gradient') return C_MAX + 4 * terms;
  return C_MAX + 1.25 * terms * sums + 10 * rank;
}

/** The same of a result of an adapted layer by its name (`y`, `h`, `dx`, `dLoraA`, ...). */
export function promisedOf(
  device: string,
  result: string,
  shape: { M: number; N: number; K: number; r: number },
  dtype: OracleDType,
): number {
  const { M, N, K, r: rank } = shape;
  switch (result) {
    case 'y':
      return promised(device, { terms: K, dtype, of: 'product', rank });
    case 'dx':
      return promised(device, { terms: N, dtype, of: 'product', rank });
    case 'h':
      return promised(device, { terms: K, dtype, of: 'adapter' });
    case 'dh':
      return promised(device, { terms: N, dtype, of: 'adapter' });
    default:
      // Of a gradient of lora_b its h has an error too, of one of lora_a its dh.
      return (
        promised(device, { terms: M, dtype, of: 'factor gradient' }) +
        promised(device, { terms: Math.max(N, K), dtype, of: 'adapter' })
      );
  }
}

export interface Mistrust {
  /** Says why a reference of mostly zeros (or with P = 0) proves something all the same. */
  readonly mostlyZeros?: string;
}

function label(name: string, index: number, cols: number): string {
  return cols > 0 ? `${name}[${Math.floor(index / cols)}, ${index % cols}]` : `${name}[${index}]`;
}

/** A reference of zeros is met by a kernel that does nothing: such a case is not to be trusted. */
export function mistrust(name: string, reference: ArrayLike<number>, options: Mistrust = {}): void {
  if (options.mostlyZeros !== undefined || reference.length === 0) return;
  let zeros = 0;
  for (let i = 0; i < reference.length; i++) if (reference[i] === 0) zeros += 1;
  if (zeros > 0.3 * reference.length) {
    throw new Error(`MISTRUSTED ${name}: ${zeros} of ${reference.length} reference values are 0`);
  }
}

/** Bitwise equality of numbers: -0 is not 0, any NaN is NaN. */
export function exact(name: string, actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  if (actual.length !== expected.length) {
    throw new Error(`${name}: ${actual.length} values, expected ${expected.length}`);
  }
  for (let i = 0; i < actual.length; i++) {
    if (!Object.is(actual[i], expected[i])) {
      throw new Error(`${name}[${i}]: got ${actual[i]}, expected ${expected[i]}`);
    }
  }
}

/** As {@link exact}, but -0 equals 0. */
export function sameValues(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): void {
  exact(
    name,
    Float64Array.from(actual, (v) => v + 0),
    Float64Array.from(expected, (v) => v + 0),
  );
}

export interface BoundOptions extends Mistrust {
  readonly c?: number;
  /** Rounding of the result, f32 unless said otherwise. */
  readonly dtype?: OracleDType;
  /** Further error that the case knows of, per element (a rounding of an intermediate). */
  readonly slack?: (index: number) => number;
}

export interface BoundReport {
  /** Largest (|y − y64| − rounding) / (u · P). */
  readonly worst: number;
}

/** Error per element against c · u · P and the rounding of the output type. */
export function bound(
  name: string,
  actual: ArrayLike<number>,
  expected: Bounded,
  options: BoundOptions = {},
): BoundReport {
  const { value, p } = expected;
  const dtype = options.dtype ?? 'f32';
  const c = options.c ?? C_MAX;
  if (actual.length !== value.data.length) {
    throw new Error(`${name}: ${actual.length} values, expected ${value.data.length}`);
  }
  mistrust(name, value.data, options);
  let worst = 0;
  for (let i = 0; i < actual.length; i++) {
    const y = actual[i] as number;
    const y64 = value.data[i] as number;
    const size = p.data[i] as number;
    if (Number.isNaN(y64) || !Number.isFinite(y64)) {
      if (!Object.is(y, y64)) throw new Error(`${label(name, i, value.cols)}: ${y}, not ${y64}`);
      continue;
    }
    if (size === 0) {
      // Nothing was added: only an exact zero is right, and the oracle must say so too.
      if (y64 !== 0) throw new Error(`MISTRUSTED ${label(name, i, value.cols)}: P is 0`);
      if (y !== 0) throw new Error(`${label(name, i, value.cols)}: got ${y}, expected 0`);
      continue;
    }
    const accumulated = c * U32 * size + (options.slack?.(i) ?? 0);
    const reach = Math.abs(y64) + accumulated;
    const rounding = ulp(dtype, reach) / 2;
    if (!Number.isFinite(y)) {
      const overflows = reach + rounding > largest(dtype);
      if (overflows && y === Math.sign(y64) * Number.POSITIVE_INFINITY) continue;
      throw new Error(`${label(name, i, value.cols)}: ${y}, expected ${y64}`);
    }
    const error = Math.abs(y - y64);
    if (!(error <= accumulated + rounding)) {
      throw new Error(
        `${label(name, i, value.cols)}: got ${y}, expected ${y64}, error ${error} is ` +
          `${(Math.max(0, error - rounding) / (U32 * size)).toFixed(2)} u·P (limit ${c}) ` +
          `with P = ${size}`,
      );
    }
    worst = Math.max(worst, (error - rounding) / (U32 * size));
  }
  return { worst };
}

/** Normalised mean squared error: Σ (y − y64)² / Σ y64². Returns it, fails above the limit. */
export function nmse(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  limit: number,
  options: Mistrust = {},
): number {
  if (actual.length !== expected.length) {
    throw new Error(`${name}: ${actual.length} values, expected ${expected.length}`);
  }
  mistrust(name, expected, options);
  let error = 0;
  let size = 0;
  for (let i = 0; i < actual.length; i++) {
    error += ((actual[i] as number) - (expected[i] as number)) ** 2;
    size += (expected[i] as number) ** 2;
  }
  if (size === 0) {
    if (options.mostlyZeros === undefined) throw new Error(`MISTRUSTED ${name}: reference is 0`);
    if (error === 0) return 0;
  }
  const ratio = error / size;
  if (!(ratio <= limit)) throw new Error(`${name}: nmse ${ratio} above ${limit}`);
  return ratio;
}
