/** f16 as blocks store it. */

const kFloat = new Float32Array(1);
const kBits = new Uint32Array(kFloat.buffer);
/** Adding it leaves the integer part of a small double, rounded to nearest even. */
const kInteger = 2 ** 52;

/** The bits of an f32 rounded to f16, to nearest even; infinity from 65,520 on. */
export function halfBits(value: number): number {
  kFloat[0] = value;
  const bits = kBits[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
  // Below 2^-14 the last place is 2^-24.
  if (magnitude < 0x38800000) return sign | (Math.abs(value) * 2 ** 24 + kInteger - kInteger);
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

/** The number of finite f16 bits. */
export function halfValue(bits: number): number {
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 1023;
  const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
  return bits >= 0x8000 ? -magnitude : magnitude;
}

/** The bits of a scale that groups multiply by integers: one that f16 would round to 0 becomes its least number. */
export function scaleBits(value: number): number {
  const bits = halfBits(value);
  return (bits & 0x7fff) === 0 && value !== 0 ? bits | 1 : bits;
}
