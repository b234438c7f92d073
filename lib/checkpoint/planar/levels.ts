/** What codes stand for: the tables that formats share. */

/** A sign, an exponent with its bias, a mantissa. Codes have the sign in their highest bit. */
export interface Minifloat {
  readonly mantissaBits: number;
  readonly bits: number;
  readonly bias: number;
}

/** The value of each code, without infinities and NaNs. */
function minifloats({ mantissaBits, bits, bias }: Minifloat): Float32Array {
  const steps = 2 ** mantissaBits;
  const half = 2 ** (bits - 1);
  return Float32Array.from({ length: 2 * half }, (_, code) => {
    const [exponent, fraction] = [Math.floor((code % half) / steps), (code % steps) / steps];
    const magnitude =
      exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias);
    return code < half ? magnitude : -magnitude;
  });
}

/** Codes from `first` on stand for `values`, with both signs. */
function withSpecials(levels: Float32Array, first: number, values: readonly number[]) {
  const half = levels.length / 2;
  for (const [i, value] of values.entries()) {
    levels[first + i] = value;
    levels[half + first + i] = -value;
  }
  return levels;
}

/** Floats of 4, 6 and 8 bits by their names. */
export const minifloatParts = {
  e2m1: { bits: 4, mantissaBits: 1, bias: 1 },
  e3m2: { bits: 6, mantissaBits: 2, bias: 3 },
  e2m3: { bits: 6, mantissaBits: 3, bias: 1 },
  e4m3: { bits: 8, mantissaBits: 3, bias: 7 },
  e5m2: { bits: 8, mantissaBits: 2, bias: 15 },
} as const satisfies Readonly<Record<string, Minifloat>>;

/** e2m1, the elements of MXFP4 and NVFP4 (OCP microscaling formats). */
export const e2m1Levels = minifloats(minifloatParts.e2m1);

/** The elements of MXFP6. */
export const e3m2Levels = minifloats(minifloatParts.e3m2);
export const e2m3Levels = minifloats(minifloatParts.e2m3);

/** e4m3fn: no infinities, one NaN of each sign (OCP 8-bit floats). */
export const e4m3Levels = withSpecials(minifloats(minifloatParts.e4m3), 0x7f, [Number.NaN]);

/** e5m2: infinities and NaNs as in IEEE 754 (OCP 8-bit floats). */
export const e5m2Levels = withSpecials(minifloats(minifloatParts.e5m2), 0x7c, [
  Number.POSITIVE_INFINITY,
  Number.NaN,
  Number.NaN,
  Number.NaN,
]);

/** e8m0: powers of two, `2^(byte - 127)`; 255 is NaN. */
export const e8m0Table = Float32Array.from({ length: 256 }, (_, byte) =>
  byte === 255 ? Number.NaN : 2 ** (byte - 127),
);

/** Integers of `bits` bits less a bias. */
export const integerLevels = (bits: number, bias = 0): Float32Array =>
  Float32Array.from({ length: 2 ** bits }, (_, code) => code - bias);

/** Have two tables the same values? NaN equals NaN, and 0 differs from -0. */
export function sameLevels(a: Float32Array, b: Float32Array): boolean {
  return a.length === b.length && a.every((level, i) => Object.is(level, b[i]));
}
