/// Normal and uniform numbers that are a pure function of (seed, index), with the same bits on
/// every device: only + - * / and sqrt in double, whose rounding IEEE 754 defines, and no library
/// function. Compile with contraction off (-ffp-contract=off, nvcc --fmad=false).
///
///   draws   four 32-bit words u of Philox group index / 4, stream kNormalStream or kUniformStream
///   normal  elements (0, 1) and (2, 3) of a group are Box-Muller pairs: with words (a, b),
///           R = sqrt(-2 ln((a + 1) · 2^-32)), t = b · 2^-32 (turns):
///           mean + scale · R cos(2 pi t), mean + scale · R sin(2 pi t)
///   uniform mean + scale · ((2 u + 1) · 2^-32 - 1)
#pragma once

#include <cstdint>
#include <cstring>

#include "native/host_device/philox.h"

#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

namespace lowrank {

/// ln(n · 2^-32) for n in [1, 2^32]: exponent and mantissa separately, then the series of 2 atanh.
/// Within 2 units in the last place.
LOWRANK_HOST_DEVICE inline double LogOfFraction(uint64_t n) {
  int exponent = -32;
  double f = static_cast<double>(n);
  while (f >= 65536.0) {
    f *= 1.52587890625e-05;
    exponent += 16;
  }
  while (f >= 2.0) {
    f *= 0.5;
    exponent += 1;
  }
  if (f > 1.4142135623730951) {
    f *= 0.5;
    exponent += 1;
  }
  // ln f = 2 s (1 + s²/3 + s⁴/5 + ...), s = (f - 1) / (f + 1), |s| < 0.1716: the first term left
  // out, s²⁴ / 25, is below 2^-64.
  const double s = (f - 1.0) / (f + 1.0);
  const double z = s * s;
  double tail = 1.0 / 23.0;
  for (int k = 21; k >= 3; k -= 2) tail = tail * z + 1.0 / k;
  // ln 2 in two parts; the high one is short enough for its multiple to be exact.
  const double high = 0.693147180369123816490e+00;
  const double low = 1.90821492927058770002e-10;
  const double fraction = 2.0 * s + 2.0 * s * (z * tail);
  return exponent * high + (fraction + exponent * low);
}

/// cos and sin of 2 pi b / 2^32. The angle is folded to [0, pi/4] as an integer, which is exact.
LOWRANK_HOST_DEVICE inline void CosSinOfTurn(uint32_t b, double* cosine, double* sine) {
  const uint32_t octant = b >> 29;
  uint32_t rest = b & 0x1fffffffu;
  const bool mirrored = (octant & 1) != 0;
  const double angle =
      (mirrored ? static_cast<double>(0x20000000u - rest) : static_cast<double>(rest)) *
      (6.28318530717958647692 / 4294967296.0);
  const double z = angle * angle;
  // Taylor series up to the term below 2^-60 at pi / 4.
  double c = 1.0;
  double s = 1.0;
  for (int k = 18; k >= 2; k -= 2) {
    c = 1.0 - c * z / static_cast<double>(k * (k - 1));
    s = 1.0 - s * z / static_cast<double>(k * (k + 1));
  }
  s *= angle;
  // Octants: an odd one mirrors the next at pi/4.
  const double a = mirrored ? s : c;
  const double d = mirrored ? c : s;
  switch (octant >> 1) {
    case 0:
      *cosine = a;
      *sine = d;
      break;
    case 1:
      *cosine = -d;
      *sine = a;
      break;
    case 2:
      *cosine = -a;
      *sine = -d;
      break;
    default:
      *cosine = d;
      *sine = -a;
  }
}

/// The gate of dropout for elements 4 · group .. 4 · group + 3: 1 where one is kept.
LOWRANK_HOST_DEVICE inline void KeepGroup(uint64_t seed, uint64_t group, uint32_t threshold,
                                          double* out) {
  const Philox4 draw = PhiloxGroup(seed, group, kDropoutStream);
  for (int i = 0; i < 4; ++i) out[i] = draw.lane[i] >= threshold ? 1.0 : 0.0;
}

/// Elements 4 · group .. 4 · group + 3.
LOWRANK_HOST_DEVICE inline void RandomGroup(bool normal, uint64_t seed, uint64_t group, double mean,
                                            double scale, double* out) {
  const Philox4 draw = PhiloxGroup(seed, group, normal ? kNormalStream : kUniformStream);
  if (!normal) {
    for (int i = 0; i < 4; ++i) {
      const double u = (2.0 * draw.lane[i] + 1.0) * (1.0 / 4294967296.0) - 1.0;
      out[i] = mean + scale * u;
    }
    return;
  }
  for (int pair = 0; pair < 2; ++pair) {
    const double radius =
        sqrt(-2.0 * LogOfFraction(static_cast<uint64_t>(draw.lane[2 * pair]) + 1));
    double cosine;
    double sine;
    CosSinOfTurn(draw.lane[2 * pair + 1], &cosine, &sine);
    out[2 * pair] = mean + scale * (radius * cosine);
    out[2 * pair + 1] = mean + scale * (radius * sine);
  }
}

}  // namespace lowrank
