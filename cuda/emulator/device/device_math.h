/// CUDA's arithmetic intrinsics for a host compiler. The approximate ones (__expf, __fdividef, ...)
/// are the correctly rounded or libm ones here: within what hardware may return, not equal to it.
#pragma once

#include <math.h>

#include "cuda/emulator/device/device_types.h"

// The C library declares functions of these names.
#define __expf(v) expf(v)
#define __exp2f(v) exp2f(v)
#define __exp10f(v) powf(10.0f, (v))
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __log10f(v) log10f(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __powf(a, b) powf((a), (b))

LOWRANK_EMU_INLINE float rsqrtf(float v) { return 1.0f / sqrtf(v); }
LOWRANK_EMU_INLINE float __frsqrt_rn(float v) {
  return static_cast<float>(1.0 / sqrt(static_cast<double>(v)));
}
LOWRANK_EMU_INLINE float __fsqrt_rn(float v) { return sqrtf(v); }
LOWRANK_EMU_INLINE float __frcp_rn(float v) { return 1.0f / v; }
LOWRANK_EMU_INLINE float __fdividef(float a, float b) { return a / b; }
LOWRANK_EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
LOWRANK_EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
LOWRANK_EMU_INLINE float __fmul_rn(float a, float b) { return a * b; }
LOWRANK_EMU_INLINE float __fadd_rn(float a, float b) { return a + b; }
LOWRANK_EMU_INLINE float __fsub_rn(float a, float b) { return a - b; }
LOWRANK_EMU_INLINE double __dmul_rn(double a, double b) { return a * b; }
LOWRANK_EMU_INLINE double __dadd_rn(double a, double b) { return a + b; }
LOWRANK_EMU_INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
LOWRANK_EMU_INLINE float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }

// ------------------------------------------------------------------------------------ conversions

namespace lowrank::emu {

/// CUDA's float to integer conversions clamp, and take NaN for 0.
template <typename To>
LOWRANK_EMU_INLINE To ClampTo(double v) {
  constexpr bool kSigned = static_cast<To>(-1) < static_cast<To>(0);
  constexpr int kBits = sizeof(To) * 8;
  const double above = kSigned ? ldexp(1.0, kBits - 1) : ldexp(1.0, kBits);
  const double lowest = kSigned ? -above : 0.0;
  if (v != v) return 0;
  if (v >= above) return kSigned ? static_cast<To>(~(To{1} << (kBits - 1))) : static_cast<To>(-1);
  if (v <= lowest) return kSigned ? static_cast<To>(To{1} << (kBits - 1)) : To{0};
  return static_cast<To>(v);
}

}  // namespace lowrank::emu

LOWRANK_EMU_INLINE int __float2int_rn(float v) {
  return lowrank::emu::ClampTo<int>(static_cast<double>(rintf(v)));
}
LOWRANK_EMU_INLINE int __float2int_rz(float v) {
  return lowrank::emu::ClampTo<int>(static_cast<double>(truncf(v)));
}
LOWRANK_EMU_INLINE int __float2int_rd(float v) {
  return lowrank::emu::ClampTo<int>(static_cast<double>(floorf(v)));
}
LOWRANK_EMU_INLINE int __float2int_ru(float v) {
  return lowrank::emu::ClampTo<int>(static_cast<double>(ceilf(v)));
}
LOWRANK_EMU_INLINE unsigned __float2uint_rn(float v) {
  return lowrank::emu::ClampTo<unsigned>(static_cast<double>(rintf(v)));
}
LOWRANK_EMU_INLINE unsigned __float2uint_rz(float v) {
  return lowrank::emu::ClampTo<unsigned>(static_cast<double>(truncf(v)));
}
LOWRANK_EMU_INLINE float __int2float_rn(int v) { return static_cast<float>(v); }
LOWRANK_EMU_INLINE float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
LOWRANK_EMU_INLINE float __ll2float_rn(long long v) { return static_cast<float>(v); }
LOWRANK_EMU_INLINE float __ull2float_rn(unsigned long long v) { return static_cast<float>(v); }
LOWRANK_EMU_INLINE float __double2float_rn(double v) { return static_cast<float>(v); }

// ------------------------------------------------------------------------------------------- bits

LOWRANK_EMU_INLINE int __popc(unsigned v) { return __builtin_popcount(v); }
LOWRANK_EMU_INLINE int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
LOWRANK_EMU_INLINE int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
LOWRANK_EMU_INLINE int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
LOWRANK_EMU_INLINE int __ffs(int v) { return __builtin_ffs(v); }
LOWRANK_EMU_INLINE int __ffsll(long long v) { return __builtin_ffsll(v); }
LOWRANK_EMU_INLINE unsigned __brev(unsigned v) {
  v = ((v >> 1) & 0x55555555u) | ((v & 0x55555555u) << 1);
  v = ((v >> 2) & 0x33333333u) | ((v & 0x33333333u) << 2);
  v = ((v >> 4) & 0x0f0f0f0fu) | ((v & 0x0f0f0f0fu) << 4);
  return __builtin_bswap32(v);
}
LOWRANK_EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
LOWRANK_EMU_INLINE int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<int64_t>(a) * b) >> 32);
}
LOWRANK_EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
/// prmt: byte i of the result is byte (selector >> 4 i) & 7 of {b, a}; bit 3 spreads its sign.
LOWRANK_EMU_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i);
    unsigned byte = static_cast<unsigned>(both >> (8 * (pick & 7))) & 0xffu;
    if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
LOWRANK_EMU_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
LOWRANK_EMU_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
/// c and the products of the bytes, or of the halves of a and the low bytes of b.
LOWRANK_EMU_INLINE unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += ((a >> (8 * i)) & 0xffu) * ((b >> (8 * i)) & 0xffu);
  return c;
}
LOWRANK_EMU_INLINE unsigned __dp2a_lo(unsigned a, unsigned b, unsigned c) {
  return c + (a & 0xffffu) * (b & 0xffu) + (a >> 16) * ((b >> 8) & 0xffu);
}
LOWRANK_EMU_INLINE int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) {
    c += static_cast<int8_t>(static_cast<unsigned>(a) >> (8 * i)) *
         static_cast<int8_t>(static_cast<unsigned>(b) >> (8 * i));
  }
  return c;
}

// ---------------------------------------------------------------------------------------- min, max

// One overload a type and no mixtures: an int against an unsigned does not compile.
#define LOWRANK_EMU_MIN_MAX(T)                                 \
  LOWRANK_EMU_INLINE T min(T a, T b) { return b < a ? b : a; } \
  LOWRANK_EMU_INLINE T max(T a, T b) { return a < b ? b : a; }
LOWRANK_EMU_MIN_MAX(int)
LOWRANK_EMU_MIN_MAX(unsigned)
LOWRANK_EMU_MIN_MAX(long)
LOWRANK_EMU_MIN_MAX(unsigned long)
LOWRANK_EMU_MIN_MAX(long long)
LOWRANK_EMU_MIN_MAX(unsigned long long)
#undef LOWRANK_EMU_MIN_MAX
LOWRANK_EMU_INLINE float min(float a, float b) { return fminf(a, b); }
LOWRANK_EMU_INLINE float max(float a, float b) { return fmaxf(a, b); }
LOWRANK_EMU_INLINE double min(double a, double b) { return fmin(a, b); }
LOWRANK_EMU_INLINE double max(double a, double b) { return fmax(a, b); }
