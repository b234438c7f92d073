/** Stores other values in the format of a planar weight: its levels, its grid, and its scales where they reach. */
import { fail, wrongType } from '../../core/errors.js';
import { checkPlanarWeight } from '../planar/check.js';
import { entryValues, numbersOf, visitEntries } from '../planar/decode.js';
import { e8m0Table, sameLevels } from '../planar/levels.js';
import {
  entriesOf,
  type PlanarWeight,
  type PlaneValues,
  type ScalePlane,
  type ZeroPlane,
} from '../planar/planar-weight.js';
import { planeOf, type SourceDType } from './source.js';

const f32 = Math.fround;
/** Adding it leaves the integer part of a small double of either sign, rounded to nearest even. */
const kInteger = 1.5 * 2 ** 52;
const roundEven = (value: number): number => value + kInteger - kInteger;

/** The finite levels in ascending order, each once, and the code of each. */
interface Levels {
  readonly values: Float64Array;
  readonly codes: Uint8Array;
  /** The codes of 0 and -0, where there are both. */
  readonly zeros: readonly [number, number] | undefined;
  /** Whether the level of code c is that of code 0 plus c. */
  readonly linear: boolean;
  /** What lies further out than half of the outermost step is clipped. */
  readonly least: number;
  readonly most: number;
}

function levelsOf(levels: Float32Array): Levels {
  const found = new Map<number, number>();
  const below = levels.findIndex((level) => Object.is(level, -0));
  levels.forEach((level, code) => {
    // 0 and -0 are one.
    if (Number.isFinite(level) && !found.has(level)) found.set(level, code);
  });
  const sorted = [...found].sort(([a], [b]) => a - b);
  const values = Float64Array.from(sorted, ([level]) => level);
  const at = (i: number): number => values.at(i) as number;
  const step = (a: number, b: number): number => (values.length < 2 ? 0 : (at(b) - at(a)) / 2);
  return {
    values,
    codes: Uint8Array.from(sorted, ([, code]) => code),
    zeros: below < 0 ? undefined : [found.get(0) as number, below],
    linear: levels.every((level, code) => level === (levels[0] as number) + code),
    least: at(0) - step(0, 1),
    most: at(-1) + step(-2, -1),
  };
}

/** The code of the level nearest to a number; a tie takes the even code. What lies below 0 keeps its sign. */
function signed(levels: Levels, x: number): number {
  const code = nearest(levels, x);
  const { zeros } = levels;
  if (zeros === undefined || code !== zeros[0]) return code;
  return x < 0 || Object.is(x, -0) ? zeros[1] : code;
}

function nearest({ values, codes, linear }: Levels, x: number): number {
  const last = values.length - 1;
  if (!(x > (values[0] as number))) return codes[0] as number;
  if (x >= (values[last] as number)) return codes[last] as number;
  if (linear) return roundEven(x - (values[0] as number));
  let [low, high] = [0, last];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((values[middle] as number) <= x) low = middle;
    else high = middle;
  }
  const [below, above] = [x - (values[low] as number), (values[high] as number) - x];
  const [first, second] = [codes[low] as number, codes[high] as number];
  if (below === above) return first % 2 === 0 ? first : second;
  return below < above ? first : second;
}

/** The numbers of a weight's entries: scale, zero-point and minimum of each. */
interface Entries {
  readonly scale: Float32Array;
  readonly zero: Float32Array | undefined;
  readonly min: Float32Array | undefined;
}

/** `(v + m) / s + z`, each operation rounded to f32: where a value lies among the levels. */
function place({ scale, zero, min }: Entries, entry: number, value: number): number {
  const s = scale[entry] as number;
  const shifted = min === undefined ? value : f32(value + (min[entry] as number));
  const steps = s === 0 ? 0 : f32(shifted / s);
  return zero === undefined ? steps : f32(steps + (zero[entry] as number));
}

/** Numbers of one entry that are made anew; undefined ones keep their old value. */
interface Remade {
  readonly scale: number;
  readonly zero?: number;
  readonly min?: number;
}

/** What the values of an entry ask for, from the least to the largest of them. */
type Rule = (low: number, high: number) => Remade;

const kDTypes = { f32: 'F32', f16: 'F16', bf16: 'BF16' } as const satisfies Record<
  string,
  SourceDType
>;

/** A number as a plane stores it, decoded; 0 if the plane cannot. */
function stored(plane: PlaneValues, wanted: number): number {
  if (plane.dtype !== 'u8') {
    const [value = 0] = numbersOf(planeOf(kDTypes[plane.dtype], Float32Array.of(wanted)));
    return Number.isFinite(value) ? value : 0;
  }
  const { table } = plane;
  const powers = sameLevels(table, e8m0Table);
  let best = 0;
  for (const value of table) {
    if (!(value > 0 && Number.isFinite(value))) continue;
    // The least power of two that reaches, or the nearest number of a table.
    const better = powers
      ? value >= wanted && (best === 0 || value < best)
      : best === 0 || Math.abs(value - wanted) < Math.abs(best - wanted);
    if (better) best = value;
  }
  return best;
}

const isPlain = ({ outer, offset }: ScalePlane): boolean =>
  outer === undefined && offset === undefined;

/**
 * How the numbers of an entry follow from its values, as plain rounding has them. Undefined where they are the result of a
 * search, or belong to several groups: scales of scales, zero-points that are fractions.
 */
function ruleOf(weight: PlanarWeight, { values, linear }: Levels): Rule | undefined {
  const { scale, zero, min, levels } = weight;
  const [first, last] = [values[0] as number, values.at(-1) as number];
  const span = last - first;
  if (!isPlain(scale) || span === 0) return undefined;
  if (min !== undefined) {
    if (!isPlain(min) || min.values.dtype === 'u8' || !linear || first !== 0) return undefined;
    return (low, high) => ({
      scale: stored(scale.values, (high - low) / span),
      min: stored(min.values, -low),
    });
  }
  if (zero !== undefined) {
    if (zero.dtype !== 'u8' || !linear || levels[0] !== 0) return undefined;
    return (low, high) => {
      const [from, to] = [Math.min(low, 0), Math.max(high, 0)];
      const own = stored(scale.values, f32(to - from) / span);
      const steps = own === 0 ? 0 : roundEven(f32(-from / own));
      return { scale: own, zero: Math.min(Math.max(steps, 0), span) };
    };
  }
  const reach = first < 0 ? span / 2 : last;
  return (low, high) => ({
    scale: stored(scale.values, Math.max(Math.abs(low), Math.abs(high)) / reach),
  });
}

/** Puts numbers that {@link stored} gave back into a copy of a plane. */
function replaced(plane: ScalePlane, numbers: ReadonlyMap<number, number>): ScalePlane {
  const { values } = plane;
  if (values.dtype === 'u8') {
    const data = values.data.slice();
    for (const [entry, value] of numbers) data[entry] = values.table.indexOf(value);
    return { ...plane, values: { ...values, data } };
  }
  const made = planeOf(kDTypes[values.dtype], Float32Array.from(numbers.values()));
  const data = values.data.slice();
  [...numbers.keys()].forEach((entry, i) => {
    data[entry] = made.data[i] as number;
  });
  return { ...plane, values: { dtype: values.dtype, data } as PlaneValues };
}

/** Entries whose scales do not reach their values, with what {@link Rule} makes of them. */
function clipped(
  weight: PlanarWeight,
  values: Float32Array,
  levels: Levels,
  entries: Entries,
  rule: Rule,
): Map<number, Remade> {
  const count = entriesOf(weight);
  const low = new Float32Array(count).fill(Number.POSITIVE_INFINITY);
  const high = new Float32Array(count).fill(Number.NEGATIVE_INFINITY);
  visitEntries(weight, (from, to, entry) => {
    let [least, most] = [low[entry] as number, high[entry] as number];
    for (let i = from; i < to; i++) {
      const value = values[i] as number;
      if (value < least) least = value;
      if (value > most) most = value;
    }
    low[entry] = least;
    high[entry] = most;
  });
  const found = new Map<number, Remade>();
  for (let entry = 0; entry < count; entry++) {
    const [least, most] = [low[entry] as number, high[entry] as number];
    // Entries of an order of columns may have no element.
    if (least > most) continue;
    const s = entries.scale[entry] as number;
    const ends = [place(entries, entry, least), place(entries, entry, most)];
    const fits =
      s === 0
        ? least === most && least === 0 - (entries.min?.[entry] ?? 0)
        : ends.every((x) => x >= levels.least && x <= levels.most);
    if (fits) continue;
    const remade = rule(least, most);
    if (remade.scale !== 0) found.set(entry, remade);
  }
  return found;
}

/** The weight with new numbers for some entries. */
function withEntries(weight: PlanarWeight, remade: ReadonlyMap<number, Remade>): PlanarWeight {
  const numbers = (name: 'scale' | 'zero' | 'min') =>
    new Map([...remade].map(([entry, made]) => [entry, made[name] as number]));
  const { scale, zero, min } = weight;
  const zeros = zero?.dtype === 'u8' ? zero.data.slice() : undefined;
  for (const [entry, value] of numbers('zero')) if (zeros !== undefined) zeros[entry] = value;
  return {
    ...weight,
    scale: replaced(scale, numbers('scale')),
    ...(zeros === undefined ? {} : { zero: { dtype: 'u8', data: zeros } satisfies ZeroPlane }),
    ...(min === undefined ? {} : { min: replaced(min, numbers('min')) }),
  };
}

function numbersOfEntries({ scale, zero, min }: PlanarWeight): Entries {
  return {
    scale: entryValues(scale),
    zero: zero && numbersOf(zero),
    min: min && entryValues(min),
  };
}

/** @param values [N, K], finite @internal */
export function requantized(weight: PlanarWeight, values: Float32Array): PlanarWeight {
  const levels = levelsOf(weight.levels);
  let made = weight;
  let entries = numbersOfEntries(weight);
  const rule = ruleOf(weight, levels);
  if (rule !== undefined) {
    const remade = clipped(weight, values, levels, entries, rule);
    if (remade.size > 0) {
      made = withEntries(weight, remade);
      entries = numbersOfEntries(made);
    }
  }
  const codes = new Uint8Array(values.length);
  visitEntries(weight, (from, to, entry) => {
    for (let i = from; i < to; i++) {
      codes[i] = signed(levels, place(entries, entry, values[i] as number));
    }
  });
  return { ...made, codes };
}

/**
 * Stores other values in the format of a weight, by plain rounding: each gets the code whose value is nearest. Scales,
 * zero-points and minima stay as they are where they reach. A group with a value beyond its outermost level by more than half a
 * step gets new ones, as plain rounding in its format makes them: `max|w| / largest`, the least power of two that reaches, or
 * the range of the group. Scales that are products (K-quants, double quantisation), and zero-points that are fractions (HQQ), are
 * the result of a search over several groups: they stay, and what they do not reach is clamped.
 *
 * @param weight the format and the scales
 * @param values [N, K], row by row, all finite
 * @returns a new weight; with the layout of the old one {@link writeQuantizedLayer} writes it
 * @throws `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_VALUE` if the parts of the weight do not fit each other or the values ·
 *   `ERR_NON_FINITE` for a NaN or an infinity
 * @example
 * const { weight, layout } = readQuantizedLayer(tensors, config, name);
 * const values = planarToFloat32(weight).map((value) => value * 1.01);
 * const tensorsAfter = writeQuantizedLayer({ weight: requantizePlanar(weight, values), layout });
 */
export function requantizePlanar(weight: PlanarWeight, values: Float32Array): PlanarWeight {
  const op = 'requantizePlanar';
  checkPlanarWeight(op, weight);
  if (!(values instanceof Float32Array)) throw wrongType(op, 'values', 'a Float32Array', values);
  const { rows, columns } = weight;
  if (values.length !== rows * columns) {
    const expected = `${rows * columns} for [${rows}, ${columns}]`;
    fail('ERR_SHAPE', op, 'number of values', expected, `${values.length}`);
  }
  requireFinite(op, 'values', values);
  return requantized(weight, values);
}

/** @throws ERR_NON_FINITE */
export function requireFinite(op: string, operand: string, values: Float32Array): void {
  let flaw = 0;
  while (flaw < values.length && Number.isFinite(values[flaw])) flaw++;
  if (flaw < values.length) {
    fail('ERR_NON_FINITE', op, `${operand}[${flaw}]`, 'finite', `${values[flaw]}`);
  }
}
