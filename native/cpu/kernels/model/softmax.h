/// 2^x, and the soft cap of scores, in f32: products and sums that are rounded apart, so that every
/// instruction set gives the same bits.
///
///   2^x    x = n + f, |f| <= 1/2: 2^n · (1 + f · Q(f)), Q the polynomial of least error. Off by
///          2 ulp at most with degree 6, and by 3e-6 with degree 4, for what becomes bf16. Below
///          2^-126 it is 0, NaN stays NaN.
///   tanh   E / (E + 2) with E = 2^(2 |x| / ln 2) - 1, which near 0 is the polynomial alone
#pragma once

#include "native/cpu/kernels/isa/simd.h"

namespace lowrank::cpu::LOWRANK_ISA {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
// Below every score: with it as the largest so far, what is hidden (-infinity) counts for 0.
constexpr float kNoScore = -3.0e38f;

LOWRANK_INLINE VecF Larger(VecF a, VecF b) { return a > b ? a : b; }
LOWRANK_INLINE VecF Smaller(VecF a, VecF b) { return a < b ? a : b; }

/// 2^x = power · (1 + tail), x up to 127.
struct Exp2Parts {
  VecF power;
  VecF tail;
};

template <int kDegree>
LOWRANK_INLINE Exp2Parts SplitExp2(VecF x) {
  static_assert(kDegree == 4 || kDegree == 6);
  const VecF magic = Splat(12582912.0f);  // 1.5 · 2^23: the low bits of the sum are the integer
  const VecF shifted = x + magic;
  const VecF f = x - (shifted - magic);
  VecF q;
  if constexpr (kDegree == 6) {
    q = Splat(1.5353362e-4f);
    q = q * f + Splat(1.3398874e-3f);
    q = q * f + Splat(9.618437e-3f);
    q = q * f + Splat(5.5503324e-2f);
    q = q * f + Splat(0.24022648f);
    q = q * f + Splat(0.69314718f);
  } else {
    q = Splat(9.582853e-3f);
    q = q * f + Splat(5.5906426e-2f);
    q = q * f + Splat(0.24024099f);
    q = q * f + Splat(0.6931242f);
  }
  return {AsFloat((Bits(shifted) + 127u) << 23), f * q};
}

template <int kDegree>
LOWRANK_INLINE VecF Exp2(VecF x) {
  const Exp2Parts parts = SplitExp2<kDegree>(Smaller(x, Splat(127.0f)));
  const VecF value = parts.power + parts.power * parts.tail;
  return x < Splat(-126.0f) ? VecF{} : value;
}

LOWRANK_INLINE VecF Tanh(VecF x) {
  const VecU sign = Bits(x) & 0x80000000u;
  const VecF twice = AsFloat(Bits(x) & 0x7fffffffu) * Splat(2.0f * kLog2E);
  const VecF most = Splat(40.0f);
  const Exp2Parts parts = SplitExp2<6>(twice > most ? most : twice);
  const VecF e = parts.power * parts.tail + (parts.power - Splat(1.0f));
  return AsFloat(Bits(e / (e + Splat(2.0f))) | sign);
}

/// What becomes of q' · k' on the way to 2^x.
struct ScoreMap {
  float factor;   // scale · log2 e, or scale / softcap
  float cap = 0;  // softcap · log2 e; 0: none

  ScoreMap(float scale, float softcap)
      : factor(softcap == 0 ? scale * kLog2E : scale / softcap), cap(softcap * kLog2E) {}

  template <bool kCapped>
  LOWRANK_MEMBER_INLINE VecF Exponent(VecF score) const {
    const VecF scaled = score * Splat(factor);
    if constexpr (kCapped) return Tanh(scaled) * Splat(cap);
    return scaled;
  }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
