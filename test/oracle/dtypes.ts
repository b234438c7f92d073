/**
 * The three element types, from their definition (sign, exponent, significand) by arithmetic on
 * doubles. No bit tricks, so that a mistake in the library's bit tricks cannot be repeated here.
 */
export type OracleDType = 'f32' | 'bf16' | 'f16';

/** `precision` counts the hidden bit; `minExponent` is that of the smallest normal number. */
interface Format {
  readonly precision: number;
  readonly minExponent: number;
  readonly maxExponent: number;
  readonly largest: number;
}

/** 2^i at i - MIN_POWER: `**` takes longer than all else here. */
const MIN_POWER = -1074;
const POWERS = Float64Array.from({ length: 2099 }, (_, i) => 2 ** (i + MIN_POWER));
const power = (exponent: number) => POWERS[exponent - MIN_POWER] as number;

const format = (precision: number, minExponent: number, maxExponent: number): Format => ({
  precision,
  minExponent,
  maxExponent,
  largest: (2 - power(1 - precision)) * power(maxExponent),
});

const FORMATS: Record<OracleDType, Format> = {
  f32: format(24, -126, 127),
  bf16: format(8, -126, 127),
  f16: format(11, -14, 15),
};

/** Exponent e with 2^e <= magnitude < 2^(e + 1), for a finite positive double. */
function exponentOf(magnitude: number): number {
  let exponent = Math.floor(Math.log2(magnitude));
  if (power(exponent) > magnitude) exponent -= 1;
  else if (power(exponent + 1) <= magnitude) exponent += 1;
  return exponent;
}

/** The nearest integer, ties to even. */
export function roundHalfEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** Distance between neighbours of `dtype` around a value of this magnitude. */
export function ulp(dtype: OracleDType, value: number): number {
  const { precision, minExponent, maxExponent } = FORMATS[dtype];
  const magnitude = Math.abs(value);
  if (magnitude === 0 || !Number.isFinite(magnitude)) {
    return power((magnitude === 0 ? minExponent : maxExponent) - precision + 1);
  }
  const exponent = Math.min(Math.max(exponentOf(magnitude), minExponent), maxExponent);
  return power(exponent - precision + 1);
}

/** The largest finite value of `dtype`. */
export function largest(dtype: OracleDType): number {
  return FORMATS[dtype].largest;
}

/** `value` rounded once to `dtype`: nearest, ties to even, denormals kept, overflow to infinity. */
export function roundTo(dtype: OracleDType, value: number): number {
  if (value === 0 || !Number.isFinite(value)) return value;
  const quantum = ulp(dtype, value);
  const rounded = roundHalfEven(Math.abs(value) / quantum) * quantum;
  const magnitude = rounded > largest(dtype) ? Number.POSITIVE_INFINITY : rounded;
  return value < 0 ? -magnitude : magnitude;
}

export function roundAll(dtype: OracleDType, values: ArrayLike<number>): Float64Array {
  const out = new Float64Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = roundTo(dtype, values[i] as number);
  return out;
}

/** Value of a bf16 or f16 bit pattern. */
export function decodeBits(dtype: 'bf16' | 'f16', bits: number): number {
  const { precision, minExponent } = FORMATS[dtype];
  const fractionCount = power(precision - 1);
  const sign = bits >= 0x8000 ? -1 : 1;
  const magnitude = bits % 0x8000;
  const biased = Math.floor(magnitude / fractionCount);
  const fraction = magnitude % fractionCount;
  if (biased === 0) return sign * fraction * power(minExponent - precision + 1);
  if (biased === 0x8000 / fractionCount - 1) {
    return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  }
  return sign * (1 + fraction / fractionCount) * power(biased - 1 + minExponent);
}

/** Bit pattern of `value` rounded to `dtype`; NaN gives a positive quiet NaN. */
export function encodeBits(dtype: 'bf16' | 'f16', value: number): number {
  const { precision, minExponent } = FORMATS[dtype];
  const fractionCount = power(precision - 1);
  const infinity = 0x8000 - fractionCount;
  if (Number.isNaN(value)) return infinity + fractionCount / 2;
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(roundTo(dtype, value));
  if (magnitude === Number.POSITIVE_INFINITY) return sign + infinity;
  if (magnitude < power(minExponent)) {
    return sign + magnitude / power(minExponent - precision + 1);
  }
  const exponent = exponentOf(magnitude);
  const fraction = (magnitude / power(exponent) - 1) * fractionCount;
  return sign + (exponent - minExponent + 1) * fractionCount + fraction;
}

export function encodeAll(dtype: 'bf16' | 'f16', values: ArrayLike<number>): Uint16Array {
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = encodeBits(dtype, values[i] as number);
  return out;
}

export function decodeAll(dtype: 'bf16' | 'f16', bits: ArrayLike<number>): Float64Array {
  const out = new Float64Array(bits.length);
  for (let i = 0; i < out.length; i++) out[i] = decodeBits(dtype, bits[i] as number);
  return out;
}
