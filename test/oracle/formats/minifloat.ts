/**
 * Floats of 4, 6 and 8 bits, from their definition: a sign, an exponent, a mantissa. e4m3fn has one
 * NaN a sign and no infinity, e5m2 has those of IEEE 754, the others have neither (OCP 8-bit floats,
 * OCP microscaling formats).
 */
export type Minifloat = 'e4m3fn' | 'e5m2' | 'e3m2' | 'e2m3' | 'e2m1';

interface Definition {
  readonly exponentBits: number;
  readonly mantissaBits: number;
  readonly bias: number;
}

const DEFINITIONS: Readonly<Record<Minifloat, Definition>> = {
  e4m3fn: { exponentBits: 4, mantissaBits: 3, bias: 7 },
  e5m2: { exponentBits: 5, mantissaBits: 2, bias: 15 },
  e3m2: { exponentBits: 3, mantissaBits: 2, bias: 3 },
  e2m3: { exponentBits: 2, mantissaBits: 3, bias: 1 },
  e2m1: { exponentBits: 2, mantissaBits: 1, bias: 1 },
};

function magnitudeOf(format: Minifloat, code: number): number {
  const { mantissaBits, bias } = DEFINITIONS[format];
  if (format === 'e4m3fn' && code === 127) return Number.NaN;
  if (format === 'e5m2' && code >= 124) return code === 124 ? Number.POSITIVE_INFINITY : Number.NaN;
  const steps = 2 ** mantissaBits;
  const exponent = Math.floor(code / steps);
  const fraction = (code % steps) / steps;
  return exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias);
}

function tableOf(format: Minifloat): Float32Array {
  const { exponentBits, mantissaBits } = DEFINITIONS[format];
  const signBit = 2 ** (exponentBits + mantissaBits);
  return Float32Array.from({ length: 2 * signBit }, (_, code) =>
    code < signBit ? magnitudeOf(format, code) : -magnitudeOf(format, code - signBit),
  );
}

const TABLES = Object.fromEntries(
  (Object.keys(DEFINITIONS) as Minifloat[]).map((format) => [format, tableOf(format)]),
) as Readonly<Record<Minifloat, Float32Array>>;

/** Value of each code; a code is its own bits. */
export const levelsOf = (format: Minifloat): Float32Array => TABLES[format];

export const mantissaBitsOf = (format: Minifloat): number => DEFINITIONS[format].mantissaBits;

/** Codes of the magnitudes that are numbers; they ascend with their code. */
const finiteCount = (format: Minifloat): number =>
  TABLES[format].findIndex((level, code) => !Number.isFinite(level) || (code > 0 && level <= 0));

export const largestOf = (format: Minifloat): number =>
  TABLES[format][finiteCount(format) - 1] as number;

/**
 * Code of the nearest level, ties to the even code. Beyond the largest level: that one; or without
 * `saturate` the next code (NaN or infinity) from half a step on, as PyTorch casts.
 */
export function encodeMinifloat(format: Minifloat, value: number, saturate = true): number {
  const levels = TABLES[format];
  const signBit = levels.length / 2;
  if (Number.isNaN(value)) return signBit - 1;
  const sign = value < 0 || Object.is(value, -0) ? signBit : 0;
  const count = finiteCount(format);
  const level = (code: number): number =>
    code < count ? (levels[code] as number) : 2 * level(count - 1) - level(count - 2);
  const last = saturate ? count - 1 : count;
  const magnitude = Math.min(Math.abs(value), level(last));
  let code = 0;
  while (code < last && level(code + 1) <= magnitude) code += 1;
  if (code === last) return sign + code;
  const below = magnitude - level(code);
  const above = level(code + 1) - magnitude;
  const up = above < below || (above === below && code % 2 === 1);
  return sign + code + (up ? 1 : 0);
}

export const decodeMinifloats = (format: Minifloat, codes: Uint8Array): Float32Array =>
  Float32Array.from(codes, (code) => TABLES[format][code] as number);

/** A power of two in a byte: 2^(E - 127), NaN for 255. */
export const e8m0 = (byte: number): number => (byte === 255 ? Number.NaN : 2 ** (byte - 127));
