/// The functions of mapTensor, with the same bits on every device: f32 in, arithmetic in double
/// (only + - * /, sqrt and the bits themselves), rounded once to f32. Compile with contraction off
/// (-ffp-contract=off, nvcc --fmad=false).
///
/// Error   at most 0.501 units in the last place of f32, including denormal results: the value
///         computed in double is within 2^-40 of the function, relatively. abs, relu, sign are
///         exact.
/// NaN     in gives NaN out; infinities and zeros behave as in the function, including signs of
///         zero, except that relu of -0 is 0
///
///   exp      x = n ln 2 + r, |r| <= ln 2 / 2: 2^n · (1 + (e^r - 1)), e^r - 1 by its Taylor
///            polynomial of degree 11; the first term left out is below 2^-45 of it
///   log      x = 2^k · m, sqrt(1/2) <= m < sqrt(2): k ln 2 + 2 atanh f, f = (m - 1) / (m + 1),
///            |f| < 0.1716, series to f^15; what is left out is below 2^-43 of it
///   tanh     E / (E + 2), E = e^(2 |x|) - 1, near 0 only the polynomial: no cancellation
///   sigmoid  1 / (1 + e^-x)
///   sin, cos |x| in quarter turns n + f, |f| <= 1/2, from as many bits of 2 / pi as x needs: exact
///            to 2^-102, where f of a float is never below 2^-31; then the Taylor series of
///            f · pi / 2, to x^15 and x^14: what is left out is below 2^-49 of it. NaN for
///            infinities
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LOWRANK_MAP_INLINE static __host__ __device__ __forceinline__
#else
// Internal linkage, so that no instruction set's unit gives the linker a copy for all of them.
#define LOWRANK_MAP_INLINE static inline __attribute__((always_inline))
#endif

namespace lowrank {

/// Every function: X(name in C++, name in JavaScript)
#define LOWRANK_FOR_EACH_MAP_FUNCTION(X) \
  X(kReciprocal, "reciprocal")           \
  X(kSqrt, "sqrt")                       \
  X(kRsqrt, "rsqrt")                     \
  X(kExp, "exp")                         \
  X(kLog, "log")                         \
  X(kTanh, "tanh")                       \
  X(kSigmoid, "sigmoid")                 \
  X(kRelu, "relu")                       \
  X(kAbs, "abs")                         \
  X(kSign, "sign")                       \
  X(kSquare, "square")                   \
  X(kSin, "sin")                         \
  X(kCos, "cos")

#define LOWRANK_MAP_ENUMERATOR(id, name) id,
enum class MapFunction : uint8_t { LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_MAP_ENUMERATOR) };
#undef LOWRANK_MAP_ENUMERATOR

LOWRANK_MAP_INLINE uint64_t BitsOfDouble(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

LOWRANK_MAP_INLINE double DoubleOfBits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

LOWRANK_MAP_INLINE double SqrtOf(double value) {
#if defined(__CUDA_ARCH__)
  return sqrt(value);
#else
  return __builtin_sqrt(value);
#endif
}

/// What the formulas below need of a type beyond + - * /: of double here, of a vector of doubles
/// where the processor's kernels use one (native/cpu/kernels/layers/map_lanes.h).
template <typename D>
struct MapLanes;

template <>
struct MapLanes<double> {
  LOWRANK_MAP_INLINE double Splat(double value) { return value; }
  LOWRANK_MAP_INLINE uint64_t Bits(double value) { return BitsOfDouble(value); }
  LOWRANK_MAP_INLINE double FromBits(uint64_t bits) { return DoubleOfBits(bits); }
  LOWRANK_MAP_INLINE double Select(bool condition, double yes, double no) {
    return condition ? yes : no;
  }
};

/// e^x = 2^n · (1 + tail), |x| up to 700.
template <typename D>
struct MapExp {
  D power;
  D tail;
};

template <typename D>
LOWRANK_MAP_INLINE MapExp<D> ExpParts(D x) {
  using L = MapLanes<D>;
  const double magic = 6755399441055744.0;  // 1.5 · 2^52: the low bits of the sum are the integer
  const D shifted = x * 1.4426950408889634 + magic;
  const D r = x - (shifted - magic) * 0.6931471805599453;
  D p = L::Splat(1.0 / 39916800.0);
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 1.0 / 2.0;
  return {L::FromBits((L::Bits(shifted) + uint64_t{1023}) << 52), r + r * r * p};
}

/// Beyond 110 on either side f32 overflows or underflows; beyond 700, so does its product with any
/// f32.
template <typename D>
LOWRANK_MAP_INLINE D ExpOf(D x) {
  using L = MapLanes<D>;
  const D low = L::Select(x < -700.0, L::Splat(-700.0), x);
  const MapExp<D> parts = ExpParts(L::Select(low > 700.0, L::Splat(700.0), low));
  return parts.power + parts.power * parts.tail;
}

template <typename D>
LOWRANK_MAP_INLINE D SigmoidOf(D x) {
  return 1.0 / (1.0 + ExpOf(-x));
}

LOWRANK_MAP_INLINE double LogOf(double x) {
  const double magic = 6755399441055744.0;
  const uint64_t bits = BitsOfDouble(x);
  // Counted from sqrt(1/2), so that the exponent changes at sqrt(2), not at 2.
  const int64_t k = static_cast<int64_t>(bits - 0x3fe6a09e667f3bcdull) >> 52;
  const double m = DoubleOfBits(bits - (static_cast<uint64_t>(k) << 52));
  const double exponent = DoubleOfBits(BitsOfDouble(magic) + static_cast<uint64_t>(k)) - magic;
  const double f = (m - 1.0) / (m + 1.0);
  const double z = f * f;
  double tail = 1.0 / 15.0;
  tail = tail * z + 1.0 / 13.0;
  tail = tail * z + 1.0 / 11.0;
  tail = tail * z + 1.0 / 9.0;
  tail = tail * z + 1.0 / 7.0;
  tail = tail * z + 1.0 / 5.0;
  tail = tail * z + 1.0 / 3.0;
  const double value = exponent * 0.6931471805599453 + (2.0 * f + 2.0 * f * (z * tail));
  const double infinity = DoubleOfBits(0x7ff0000000000000ull);
  const double finite = x == infinity ? infinity : value;
  const double positive = x == 0.0 ? -infinity : finite;
  return x < 0.0 || x != x ? DoubleOfBits(0x7ff8000000000000ull) : positive;
}

template <typename D>
LOWRANK_MAP_INLINE D TanhOf(D x) {
  using L = MapLanes<D>;
  const auto sign = L::Bits(x) & uint64_t{0x8000000000000000};
  const D size = L::FromBits(L::Bits(x) ^ sign);
  // From 20 on it is 1 in f32.
  const MapExp<D> parts = ExpParts(L::Select(size > 20.0, L::Splat(40.0), 2.0 * size));
  const D e = parts.power * parts.tail + (parts.power - 1.0);
  return L::FromBits(L::Bits(e / (e + 2.0)) | sign);
}

/// An angle beyond the nearest quarter turn, in radians, and the number of that turn mod 4.
struct MapAngle {
  double rest;
  uint32_t quarter;
};

/// For a finite float |x|. x = M · 2^(k - 24), with M of 24 bits. For x · 2 / pi mod 4 only the
/// bits of 2 / pi with a weight below 2^(26 - k) matter, and of those 128.
LOWRANK_MAP_INLINE MapAngle AngleOf(double size) {
  if (size < 0.7853981633974483) return {size, 0};
  const uint64_t bits = BitsOfDouble(size);
  const uint64_t mantissa = (bits >> 29 & 0x7fffff) | 0x800000;
  const uint32_t k = static_cast<uint32_t>(bits >> 52) - 1022;
  // A word of zeros, then 2 / pi; bit k + 6 of it is the first that matters.
  const uint32_t skip = (k + 6) >> 5;
  const uint32_t shift = (k + 6) & 31;
  uint64_t w0 = 0, w1 = 0xa2f9836e, w2 = 0x4e441529, w3 = 0xfc2757d1, w4 = 0xf534ddc0;
  const auto advance = [&](bool on, uint64_t next) {
    w0 = on ? w1 : w0;
    w1 = on ? w2 : w1;
    w2 = on ? w3 : w2;
    w3 = on ? w4 : w3;
    w4 = on ? next : w4;
  };
  advance(skip > 0, 0xdb629599);
  advance(skip > 1, 0x3c439041);
  advance(skip > 2, 0xfe5163ab);
  advance(skip > 3, 0xdebbc561);
  const uint64_t low = 0xffffffff;
  // The window's words times M, mod 2^128, with the binary point after two bits.
  const uint64_t p3 = mantissa * ((w3 << 32 | w4) << shift >> 32);
  const uint64_t p2 = mantissa * ((w2 << 32 | w3) << shift >> 32) + (p3 >> 32);
  const uint64_t p1 = mantissa * ((w1 << 32 | w2) << shift >> 32) + (p2 >> 32);
  const uint64_t p0 = mantissa * ((w0 << 32 | w1) << shift >> 32) + (p1 >> 32);
  const uint64_t high = p0 << 32 | (p1 & low);
  const uint64_t tail = p2 << 32 | (p3 & low);
  const uint64_t quarter = (high + 0x2000000000000000ull) >> 62;
  const double turn = static_cast<double>(static_cast<int64_t>(high - (quarter << 62))) * 0x1p-62 +
                      static_cast<double>(tail) * 0x1p-126;
  return {turn * 1.5707963267948966, static_cast<uint32_t>(quarter)};
}

/// sin(|x| + ahead · pi / 2)
LOWRANK_MAP_INLINE double CircleOf(double size, uint32_t ahead) {
  if (!(size < DoubleOfBits(0x7ff0000000000000ull))) return DoubleOfBits(0x7ff8000000000000ull);
  const MapAngle angle = AngleOf(size);
  const uint32_t quarter = angle.quarter + ahead;
  const double r = angle.rest;
  const double z = r * r;
  double s = -1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  double c = -1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 1.0 / 2.0;
  const double value = (quarter & 1) != 0 ? 1.0 + z * c : r + r * (z * s);
  return (quarter & 2) != 0 ? -value : value;
}

/// f(x), in double.
template <MapFunction kFunction>
LOWRANK_MAP_INLINE double MapValue(float value) {
  const double x = static_cast<double>(value);
  switch (kFunction) {
    case MapFunction::kReciprocal:
      return 1.0 / x;
    case MapFunction::kSqrt:
      return SqrtOf(x);
    case MapFunction::kRsqrt:
      return 1.0 / SqrtOf(x);
    case MapFunction::kExp:
      return ExpOf(x);
    case MapFunction::kLog:
      return LogOf(x);
    case MapFunction::kTanh:
      return TanhOf(x);
    case MapFunction::kSigmoid:
      return SigmoidOf(x);
    case MapFunction::kRelu:
      return x <= 0.0 ? 0.0 : x;
    case MapFunction::kAbs:
      return DoubleOfBits(BitsOfDouble(x) & 0x7fffffffffffffffull);
    case MapFunction::kSign:
      return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x;
    case MapFunction::kSquare:
      return x * x;
    case MapFunction::kSin: {
      const uint64_t sign = BitsOfDouble(x) & 0x8000000000000000ull;
      return DoubleOfBits(BitsOfDouble(CircleOf(DoubleOfBits(BitsOfDouble(x) ^ sign), 0)) ^ sign);
    }
    case MapFunction::kCos:
      return CircleOf(DoubleOfBits(BitsOfDouble(x) & 0x7fffffffffffffffull), 1);
  }
  return x;
}

}  // namespace lowrank
