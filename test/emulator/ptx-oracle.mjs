/**
 * Numbers as PTX defines them, in exact integers: what the cases of ptx-instruction-cases.mjs are
 * checked against. Nothing here knows how the translator computes.
 */

export const mask = (bits) => (1n << BigInt(bits)) - 1n;
export const unsigned = (x, bits) => BigInt.asUintN(bits, x);
export const signed = (x, bits) => BigInt.asIntN(bits, x);

/** Binary floats: bits of the exponent and of the fraction. */
export const kFormats = {
  f16: { exponent: 5n, fraction: 10n },
  bf16: { exponent: 8n, fraction: 7n },
  tf32: { exponent: 8n, fraction: 10n },
  f32: { exponent: 8n, fraction: 23n },
  f64: { exponent: 11n, fraction: 52n },
};

/** { nan } · { infinite, sign } · { sign, m, e }: (-1)^sign · m · 2^e. */
export function decode(bits, name) {
  const { exponent, fraction } = kFormats[name];
  const sign = (bits >> (exponent + fraction)) & 1n;
  const e = (bits >> fraction) & mask(exponent);
  const f = bits & mask(fraction);
  const bias = (1n << (exponent - 1n)) - 1n;
  if (e === mask(exponent)) return f === 0n ? { infinite: true, sign } : { nan: true };
  if (e === 0n) return { sign, m: f, e: 1n - bias - fraction };
  return { sign, m: f | (1n << fraction), e: e - bias - fraction };
}

/** Nearest, ties to even, of (-1)^sign · m · 2^e; `sticky`: a little more than that. */
export function encode({ sign, m, e, nan, infinite }, name, sticky = false) {
  const { exponent, fraction } = kFormats[name];
  if (nan) return null;
  const top = sign << (exponent + fraction);
  const bias = (1n << (exponent - 1n)) - 1n;
  const infinity = top | (mask(exponent) << fraction);
  if (infinite) return infinity;
  if (m === 0n) return top;
  // One bit of room for `sticky` below everything.
  let value = (m << 1n) | (sticky ? 1n : 0n);
  let scale = e - 1n;
  const least = 1n - bias - fraction;
  const length = BigInt(value.toString(2).length);
  let drop = length - (fraction + 1n);
  if (scale + drop < least) drop = least - scale;
  if (drop > 0n) {
    const rest = value & mask(drop);
    const half = 1n << (drop - 1n);
    value >>= drop;
    if (rest > half || (rest === half && (value & 1n) === 1n)) value++;
  } else {
    value <<= -drop;
  }
  scale += drop;
  if (value >> (fraction + 1n)) {
    value >>= 1n;
    scale++;
  }
  if (value >> fraction === 0n) return top | value; // subnormal
  const biased = scale + bias + fraction;
  if (biased >= mask(exponent)) return infinity;
  return top | (biased << fraction) | (value & mask(fraction));
}

const negate = (x) => (x.nan ? x : { ...x, sign: 1n - x.sign });

/** Exact sum; an exact zero is +0 unless both are -0. */
function sum(x, y) {
  if (x.nan || y.nan) return { nan: true };
  if (x.infinite || y.infinite) {
    if (x.infinite && y.infinite && x.sign !== y.sign) return { nan: true };
    return x.infinite ? x : y;
  }
  let { e } = x;
  if (y.e < e) e = y.e;
  const value = (v) => (v.sign ? -1n : 1n) * (v.m << (v.e - e));
  const total = value(x) + value(y);
  if (total === 0n) return { sign: x.sign & y.sign, m: 0n, e };
  return { sign: total < 0n ? 1n : 0n, m: total < 0n ? -total : total, e };
}

function product(x, y) {
  if (x.nan || y.nan) return { nan: true };
  const sign = x.sign ^ y.sign;
  if (x.infinite || y.infinite) {
    return x.m === 0n || y.m === 0n ? { nan: true } : { infinite: true, sign };
  }
  return { sign, m: x.m * y.m, e: x.e + y.e };
}

/** Results as bits, null for any NaN. Operands are bits of the format. */
export const float = {
  add: (f) => (a, b) => encode(sum(decode(a, f), decode(b, f)), f),
  sub: (f) => (a, b) => encode(sum(decode(a, f), negate(decode(b, f))), f),
  mul: (f) => (a, b) => encode(product(decode(a, f), decode(b, f)), f),
  fma: (f) => (a, b, c) => encode(sum(product(decode(a, f), decode(b, f)), decode(c, f)), f),
  div: (f) => (a, b) => {
    const [x, y] = [decode(a, f), decode(b, f)];
    if (x.nan || y.nan || (x.infinite && y.infinite) || (x.m === 0n && y.m === 0n)) return null;
    const sign = x.sign ^ y.sign;
    if (x.infinite || y.m === 0n) return encode({ infinite: true, sign }, f);
    if (y.infinite || x.m === 0n) return encode({ sign, m: 0n, e: 0n }, f);
    const up = 160n;
    const quotient = (x.m << up) / y.m;
    return encode({ sign, m: quotient, e: x.e - y.e - up }, f, quotient * y.m !== x.m << up);
  },
  sqrt: (f) => (a) => {
    const x = decode(a, f);
    if (x.nan || (x.sign && x.m !== 0n)) return null;
    if (x.infinite || x.m === 0n) return a;
    const up = 200n + ((x.e + 200n) & 1n);
    const value = x.m << up;
    let root = 1n << BigInt((value.toString(2).length + 1) >> 1);
    for (let next = (root + value / root) >> 1n; next < root; next = (root + value / root) >> 1n) {
      root = next;
    }
    return encode({ sign: 0n, m: root, e: (x.e - up) / 2n }, f, root * root !== value);
  },
  convert: (from, to) => (a) => encode(decode(a, from), to),
  fromInteger: (bits, isSigned, to) => (a) => {
    const value = isSigned ? signed(a, bits) : unsigned(a, bits);
    const sign = value < 0n ? 1n : 0n;
    return encode({ sign, m: sign ? -value : value, e: 0n }, to);
  },
  /** cvt.<rni|rzi|rmi|rpi> to an integer, clamped; `nanIs` for NaN. */
  toInteger: (from, bits, isSigned, rounding, nanIs) => (a) => {
    const x = decode(a, from);
    const low = isSigned ? -(1n << BigInt(bits - 1)) : 0n;
    const high = isSigned ? (1n << BigInt(bits - 1)) - 1n : mask(bits);
    if (x.nan) return nanIs;
    if (x.infinite) return unsigned(x.sign ? low : high, bits);
    let whole = x.m << (x.e > 0n ? x.e : 0n);
    let rest = 0n;
    const down = x.e < 0n ? -x.e : 0n;
    if (down > 0n) {
      rest = whole & mask(down);
      whole >>= down;
    }
    const half = down > 0n ? 1n << (down - 1n) : 0n;
    const up = {
      rni: rest > half || (rest === half && rest !== 0n && (whole & 1n) === 1n),
      rzi: false,
      rmi: rest !== 0n && x.sign === 1n,
      rpi: rest !== 0n && x.sign === 0n,
    }[rounding];
    if (up) whole++;
    const value = x.sign ? -whole : whole;
    return unsigned(value < low ? low : value > high ? high : value, bits);
  },
  /** null where both are NaN. */
  extremum: (f, larger) => (a, b) => {
    const [x, y] = [decode(a, f), decode(b, f)];
    if (x.nan) return y.nan ? null : b;
    if (y.nan) return a;
    // Order of the bits as sign and magnitude; -0 is below +0.
    const width = Number(kFormats[f].exponent + kFormats[f].fraction) + 1;
    const key = (v) => (v >> BigInt(width - 1) ? -(v & mask(width - 1)) - 1n : v);
    return key(a) > key(b) === larger ? a : b;
  },
  /** 'lt', 'equ', 'num', ... */
  compare: (f, test) => (a, b) => {
    const [x, y] = [decode(a, f), decode(b, f)];
    const unordered = Boolean(x.nan || y.nan);
    if (test === 'num') return !unordered;
    if (test === 'nan') return unordered;
    if (unordered) return test.endsWith('u');
    const width = Number(kFormats[f].exponent + kFormats[f].fraction) + 1;
    const key = (v) => (v >> BigInt(width - 1) ? -(v & mask(width - 1)) : v);
    const [p, q] = [key(a), key(b)];
    return { eq: p === q, ne: p !== q, lt: p < q, le: p <= q, gt: p > q, ge: p >= q }[
      test.slice(0, 2)
    ];
  },
};
