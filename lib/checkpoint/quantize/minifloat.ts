/** Rounds numbers to floats of 4, 6 and 8 bits. */
import {
  e2m1Levels,
  e2m3Levels,
  e3m2Levels,
  e4m3Levels,
  e5m2Levels,
  minifloatParts,
} from '../planar/levels.js';

/** A small float: its levels, and how to round to them. */
export interface Element {
  readonly bits: number;
  readonly levels: Float32Array;
  /** The largest finite level. */
  readonly largest: number;
  readonly mantissaBits: number;
  /** The code of the nearest level, saturating. A tie takes the even code, or with `tiesDown` the smaller magnitude. */
  encode(value: number, tiesDown?: boolean): number;
}

const kFloat = new Float32Array(1);
const kBits = new Uint32Array(kFloat.buffer);
/** Adding it leaves the integer part of a small double, rounded to nearest even. */
const kInteger = 2 ** 52;

/** The exponent of an f32; −127 for 0 and subnormals. */
export function exponentOf(value: number): number {
  kFloat[0] = value;
  return (((kBits[0] as number) >>> 23) & 0xff) - 127;
}

function elementOf(name: keyof typeof minifloatParts, levels: Float32Array): Element {
  const { bits, mantissaBits, bias } = minifloatParts[name];
  const sign = 2 ** (bits - 1);
  const largest = levels.reduce(
    (most, level) => (Number.isFinite(level) && level > most ? level : most),
    0,
  );
  const top = levels.indexOf(largest);
  const least = 1 - bias;
  // Steps of a mantissa in 1, by the exponent.
  const count = exponentOf(largest) - least + 1;
  const steps = Float64Array.from({ length: count }, (_, i) => 2 ** (mantissaBits - least - i));
  return {
    bits,
    levels,
    largest,
    mantissaBits,
    encode(value, tiesDown = false) {
      kFloat[0] = value;
      const signed = (kBits[0] as number) >>> 31 === 0 ? 0 : sign;
      const magnitude = Math.abs(value);
      if (magnitude >= largest) return signed + top;
      const place = Math.max((((kBits[0] as number) >>> 23) & 255) - 127 - least, 0);
      const exact = magnitude * (steps[place] as number);
      const rounded = tiesDown ? Math.ceil(exact - 0.5) : exact + kInteger - kInteger;
      // A mantissa that rounds up to the next power of two carries into the exponent.
      return signed + (place << mantissaBits) + rounded;
    },
  };
}

export const e2m1 = elementOf('e2m1', e2m1Levels);
export const e3m2 = elementOf('e3m2', e3m2Levels);
export const e2m3 = elementOf('e2m3', e2m3Levels);
export const e4m3 = elementOf('e4m3', e4m3Levels);
export const e5m2 = elementOf('e5m2', e5m2Levels);
