/**
 * HQQ, half-quadratic quantisation (Badri and Shaji 2023): for the scale of each group's range it searches for the zero-point, a
 * fraction. In turns: codes for the zero-point, the errors that a proximal step of the l_p norm leaves as outliers, and the
 * zero-point that is best for the rest.
 */
import { halfBits, halfValue } from '../gguf/quantize/half.js';
import { integerLevels } from '../planar/levels.js';
import type { Grid, PlanarWeight } from '../planar/planar-weight.js';
import type { Source } from './source.js';

export interface HqqRounding {
  readonly bits: number;
  /** Elements of a group. */
  readonly size: number;
  /** 1: a group lies in a row. 0: w is reshaped to [size, N · K / size], and a group is a column of that. */
  readonly axis: 0 | 1;
  /** Whether to search; the range of a group alone decides otherwise. */
  readonly optimize: boolean;
  /** Whether the first zero-point is an integer. */
  readonly roundZero: boolean;
}

/** The settings of the authors' own library. */
const kNorm = 0.7;
const kBeta = 10;
const kKappa = 1.01;
const kRounds = 20;

/** Steps per unit that a scale in f16 can hold, and the largest zero-point. */
const kMostSteps = 2e4;
const kMostZero = 6e4;

const kInteger = 2 ** 52;
const f32 = Math.fround;
const half = (value: number): number => halfValue(halfBits(value));

/** A group's numbers as they are stored, and what they lose: the sum of magnitudes. */
interface Fit {
  readonly scale: number;
  readonly zero: number;
  readonly loss: number;
}

/** Codes for a scale and a zero-point; the sum of the errors' magnitudes. */
function assign(
  x: Float32Array,
  codes: Uint8Array,
  top: number,
  scale: number,
  zero: number,
): number {
  const inverse = 1 / scale;
  let loss = 0;
  for (let i = 0; i < x.length; i++) {
    const value = x[i] as number;
    const steps = value * inverse + zero;
    const code = steps >= top ? top : steps > 0 ? steps + kInteger - kInteger : 0;
    codes[i] = code;
    loss += Math.abs(f32(f32(code - zero) * scale) - value);
  }
  return loss;
}

/** The zero-point that is best for the errors which are no outliers. */
function nextZero(
  x: Float32Array,
  codes: Uint8Array,
  scale: number,
  zero: number,
  beta: number,
): number {
  const inverse = 1 / scale;
  // Up to here the proximal step leaves 0.
  const least = (1 / beta) ** (1 / (2 - kNorm));
  let sum = 0;
  for (let i = 0; i < x.length; i++) {
    const [value, code] = [x[i] as number, codes[i] as number];
    const error = value - (code - zero) * scale;
    const size = Math.abs(error);
    let outlier = 0;
    if (size > least) outlier = Math.sign(error) * (size - size ** (kNorm - 1) / beta);
    sum += code - (value - outlier) * inverse;
  }
  return sum / x.length;
}

/** The best fit that begins at a range. */
function fitRange(
  x: Float32Array,
  codes: Uint8Array,
  [least, most]: readonly [number, number],
  { bits, optimize, roundZero }: HqqRounding,
): Fit {
  const top = 2 ** bits - 1;
  const wanted = most > least ? top / (most - least) : kMostSteps;
  const reach = kMostZero / Math.max(Math.abs(least), Math.abs(most), kMostZero / kMostSteps);
  const scale = half(1 / Math.min(wanted, kMostSteps, reach));
  const start = -least / scale;
  const first = half(roundZero ? Math.round(start) : start);
  let best: Fit = { scale, zero: first, loss: assign(x, codes, top, scale, first) };
  if (!optimize) return best;
  let beta = kBeta;
  for (let round = 1; round < kRounds; round++) {
    const zero = half(nextZero(x, codes, scale, best.zero, beta));
    beta *= kKappa;
    const loss = assign(x, codes, top, scale, zero);
    if (!(loss < best.loss)) break;
    best = { scale, zero, loss };
  }
  return best;
}

function fitGroup(x: Float32Array, codes: Uint8Array, how: HqqRounding): Fit {
  let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let i = 0; i < x.length; i++) {
    const value = x[i] as number;
    if (value < least) least = value;
    if (value > most) most = value;
  }
  const fit = fitRange(x, codes, [least, most], how);
  assign(x, codes, 2 ** how.bits - 1, fit.scale, fit.zero);
  return fit;
}

/** Codes with a scale and a zero-point in f16 for each group. */
export function quantizeHqq(source: Source, how: HqqRounding): PlanarWeight {
  const { values, rows, columns } = source;
  const { bits, size, axis } = how;
  const groups = values.length / size;
  const codes = new Uint8Array(values.length);
  const [scales, zeros] = [new Uint16Array(groups), new Uint16Array(groups)];
  const x = new Float32Array(size);
  const own = new Uint8Array(size);
  const [start, step] = axis === 1 ? [size, 1] : [1, groups];
  for (let group = 0; group < groups; group++) {
    for (let i = 0; i < size; i++) x[i] = values[group * start + i * step] as number;
    const { scale, zero } = fitGroup(x, own, how);
    for (let i = 0; i < size; i++) codes[group * start + i * step] = own[i] as number;
    scales[group] = halfBits(scale);
    zeros[group] = halfBits(zero);
  }
  const rowGrid: Grid =
    columns % size === 0 ? { kind: 'tiles', rows: 1, columns: size } : { kind: 'flat', span: size };
  return {
    rows,
    columns,
    bits,
    codes,
    levels: integerLevels(bits),
    grid: axis === 1 ? rowGrid : { kind: 'cyclic', period: groups },
    scale: { values: { dtype: 'f16', data: scales } },
    zero: { dtype: 'f16', data: zeros },
  };
}
