/**
 * The search for scales of a group of weights x with importances p.
 *
 * For given codes the best scale is a least-squares solution, and for a given scale the best codes are the nearest ones. The
 * search begins at many scales around the one that makes the extreme weight the extreme level, and improves the best start
 * until its codes stay the same.
 */

/** Levels that codes stand for, and which one is nearest to a number. */
export interface Levels {
  /** Integers in ascending order. */
  readonly values: Float32Array;
  /** The nearest code of numbers from `values[0] + i / 2` to the next half: midpoints of integers are halves. */
  readonly cells: Uint8Array;
}

export function levelsOf(values: Float32Array): Levels {
  const [first = 0] = values;
  const span = (values.at(-1) as number) - first;
  let code = 0;
  const cells = Uint8Array.from({ length: 2 * span + 1 }, (_, i) => {
    const [level, next] = [values[code] as number, values[code + 1] as number];
    if (first + i / 2 >= (level + next) / 2) code++;
    return code;
  });
  return { values, cells };
}

/** The code of the level nearest to a number in steps of the scale. */
function nearest({ values, cells }: Levels, value: number): number {
  const cell = (value - (values[0] as number)) * 2;
  if (cell >= cells.length - 1) return values.length - 1;
  return cell > 0 ? (cells[cell | 0] as number) : 0;
}

/** How far around the first guess starts lie, in levels, and how far apart. */
const kReach = 0.9;
const kStep = 0.1;
const kMostRounds = 8;

/** Nearest codes of `scale · level`. */
export function assign(x: Float32Array, scale: number, levels: Levels, codes: Uint8Array): void {
  const inverse = scale === 0 ? 0 : 1 / scale;
  for (let i = 0; i < x.length; i++) codes[i] = nearest(levels, (x[i] as number) * inverse);
}

/** Σ p · (x − scale · level + min)² */
export function errorOf(
  x: Float32Array,
  p: Float32Array,
  { values }: Levels,
  codes: Uint8Array,
  scale: number,
  min = 0,
): number {
  let error = 0;
  for (let i = 0; i < x.length; i++) {
    const off = (x[i] as number) - scale * (values[codes[i] as number] as number) + min;
    error += (p[i] as number) * off * off;
  }
  return error;
}

/** The largest magnitude with its sign; the first of equal ones. */
export function extremeOf(x: Float32Array): number {
  let found = 0;
  for (const value of x) if (Math.abs(value) > Math.abs(found)) found = value;
  return found;
}

/**
 * The scale s, of either sign, for which `Σ p · (x − s · level)²` is least.
 * @param codes receives the codes
 */
export function fitScale(
  x: Float32Array,
  p: Float32Array,
  levels: Levels,
  codes: Uint8Array,
): number {
  const extreme = extremeOf(x);
  codes.fill(nearest(levels, 0));
  if (extreme === 0) return 0;
  const { values } = levels;
  let best = 0;
  let scale = 0;
  // For the best scale the error is Σ p x² − gain.
  const consider = (start: number): boolean => {
    const inverse = 1 / start;
    let xl = 0;
    let ll = 0;
    for (let i = 0; i < x.length; i++) {
      const level = values[nearest(levels, (x[i] as number) * inverse)] as number;
      const weighted = (p[i] as number) * level;
      xl += weighted * (x[i] as number);
      ll += weighted * level;
    }
    const gain = ll > 0 ? (xl * xl) / ll : 0;
    if (!(gain > best)) return false;
    best = gain;
    scale = xl / ll;
    return true;
  };
  for (const end of [values[0] as number, values.at(-1) as number]) {
    // A level of a table is wider or narrower than 1.
    const width = Math.abs(end) / (values.length / 2);
    for (let off = -kReach; off <= kReach; off += kStep) consider(extreme / (end + off * width));
  }
  for (let round = 0; round < kMostRounds && consider(scale); round++);
  if (scale === 0) return 0;
  assign(x, scale, levels, codes);
  return scale;
}

/** A scale and a minimum, both at least 0. */
export interface ScaleAndMin {
  readonly scale: number;
  readonly min: number;
}

/**
 * The scale s and minimum m, both at least 0, for which `Σ p · (x − s · c + m)²` is least over the codes c from 0 to `top`.
 * @param codes receives the codes
 */
export function fitScaleAndMin(
  x: Float32Array,
  p: Float32Array,
  top: number,
  codes: Uint8Array,
): ScaleAndMin {
  let [least, most, pSum, xSum, xx] = [0, Number.NEGATIVE_INFINITY, 0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    const [value, weight] = [x[i] as number, p[i] as number];
    least = Math.min(least, value);
    most = Math.max(most, value);
    pSum += weight;
    xSum += weight * value;
    xx += weight * value * value;
  }
  codes.fill(0);
  if (most <= least) return { scale: 0, min: -least };
  let best = Number.POSITIVE_INFINITY;
  let found: ScaleAndMin = { scale: 0, min: 0 };
  const consider = (inverse: number, min: number): boolean => {
    let [c1, c2, xc] = [0, 0, 0];
    for (let i = 0; i < x.length; i++) {
      const [value, weight] = [x[i] as number, p[i] as number];
      const code = clampCode((value + min) * inverse, top);
      c1 += weight * code;
      c2 += weight * code * code;
      xc += weight * code * value;
    }
    const solved = solve({ pSum, xSum, c1, c2, xc });
    const { scale: s, min: m } = solved;
    const error = xx - 2 * s * xc + 2 * m * xSum + s * s * c2 - 2 * s * m * c1 + m * m * pSum;
    if (!(error < best) || !(s > 0)) return false;
    best = error;
    found = solved;
    return true;
  };
  for (let off = -kReach; off <= kReach; off += kStep)
    consider((top + off) / (most - least), -least);
  for (let round = 0; round < kMostRounds && found.scale > 0; round++) {
    if (!consider(1 / found.scale, found.min)) break;
  }
  for (let i = 0; i < x.length; i++) {
    const value = (x[i] as number) + found.min;
    codes[i] = found.scale === 0 ? 0 : clampCode(value / found.scale, top);
  }
  return found;
}

const clampCode = (value: number, top: number): number =>
  value >= top ? top : value > 0 ? (value + 0.5) | 0 : 0;

interface Sums {
  readonly pSum: number;
  readonly xSum: number;
  readonly c1: number;
  readonly c2: number;
  readonly xc: number;
}

/** Least squares over both; a minimum below 0 becomes 0. */
function solve({ pSum, xSum, c1, c2, xc }: Sums): ScaleAndMin {
  const det = pSum * c2 - c1 * c1;
  if (det > 0) {
    const min = (c1 * xc - c2 * xSum) / det;
    if (min > 0) return { scale: (pSum * xc - c1 * xSum) / det, min };
  }
  return { scale: c2 > 0 ? xc / c2 : 0, min: 0 };
}
