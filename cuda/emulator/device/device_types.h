/// CUDA's vector and 16-bit types for a host compiler, in the global namespace as CUDA has them.
///
/// The 16-bit floats have no constructor from numbers and no conversion operators, on purpose:
/// CUDA's own convert an integer by value where a naive host type would take its bits, and what
/// differs between the two ways to compile a kernel must not compile in one of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/emulator/runtime.h"

using dim3 = lowrank::emu::Dim3;
using uint3 = lowrank::emu::Dim3;

#define LOWRANK_EMU_VECTOR2(Name, T, alignment) \
  struct alignas(alignment) Name {              \
    T x, y;                                     \
  };                                            \
  [[maybe_unused]] static inline Name make_##Name(T x, T y) { return Name{x, y}; }
#define LOWRANK_EMU_VECTOR4(Name, T, alignment) \
  struct alignas(alignment) Name {              \
    T x, y, z, w;                               \
  };                                            \
  [[maybe_unused]] static inline Name make_##Name(T x, T y, T z, T w) { return Name{x, y, z, w}; }

LOWRANK_EMU_VECTOR2(char2, signed char, 2)
LOWRANK_EMU_VECTOR2(uchar2, unsigned char, 2)
LOWRANK_EMU_VECTOR2(short2, short, 4)
LOWRANK_EMU_VECTOR2(ushort2, unsigned short, 4)
LOWRANK_EMU_VECTOR2(int2, int, 8)
LOWRANK_EMU_VECTOR2(uint2, unsigned int, 8)
LOWRANK_EMU_VECTOR2(float2, float, 8)
LOWRANK_EMU_VECTOR2(longlong2, long long, 16)
LOWRANK_EMU_VECTOR2(ulonglong2, unsigned long long, 16)
LOWRANK_EMU_VECTOR2(double2, double, 16)
LOWRANK_EMU_VECTOR4(char4, signed char, 4)
LOWRANK_EMU_VECTOR4(uchar4, unsigned char, 4)
LOWRANK_EMU_VECTOR4(short4, short, 8)
LOWRANK_EMU_VECTOR4(ushort4, unsigned short, 8)
LOWRANK_EMU_VECTOR4(int4, int, 16)
LOWRANK_EMU_VECTOR4(uint4, unsigned int, 16)
LOWRANK_EMU_VECTOR4(float4, float, 16)

#undef LOWRANK_EMU_VECTOR2
#undef LOWRANK_EMU_VECTOR4

/// Only the functions below make one out of bits or of a float.
struct __nv_bfloat16 {
  uint16_t emulated_bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct __half {
  uint16_t emulated_bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using half = __half;
using half2 = __half2;

#define LOWRANK_EMU_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

namespace lowrank::emu {

template <typename To, typename From>
LOWRANK_EMU_INLINE To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace lowrank::emu

LOWRANK_EMU_INLINE unsigned __float_as_uint(float v) { return lowrank::emu::BitCast<unsigned>(v); }
LOWRANK_EMU_INLINE int __float_as_int(float v) { return lowrank::emu::BitCast<int>(v); }
LOWRANK_EMU_INLINE float __uint_as_float(unsigned v) { return lowrank::emu::BitCast<float>(v); }
LOWRANK_EMU_INLINE float __int_as_float(int v) { return lowrank::emu::BitCast<float>(v); }
LOWRANK_EMU_INLINE long long __double_as_longlong(double v) {
  return lowrank::emu::BitCast<long long>(v);
}
LOWRANK_EMU_INLINE double __longlong_as_double(long long v) {
  return lowrank::emu::BitCast<double>(v);
}

// ------------------------------------------------------------------------------------------- bf16

LOWRANK_EMU_INLINE __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
LOWRANK_EMU_INLINE unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.emulated_bits; }
LOWRANK_EMU_INLINE float __bfloat162float(__nv_bfloat16 v) {
  return __uint_as_float(static_cast<unsigned>(v.emulated_bits) << 16);
}
/// To the nearest, ties to even; every NaN becomes 0x7fff, as cvt.rn.bf16.f32 has it.
LOWRANK_EMU_INLINE __nv_bfloat16 __float2bfloat16_rn(float v) {
  const unsigned bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
LOWRANK_EMU_INLINE __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }
LOWRANK_EMU_INLINE __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
LOWRANK_EMU_INLINE __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return __floats2bfloat162_rn(v.x, v.y);
}
LOWRANK_EMU_INLINE float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
LOWRANK_EMU_INLINE float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
LOWRANK_EMU_INLINE float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
LOWRANK_EMU_INLINE __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
/// The product of two bf16 is exact in float: one rounding.
LOWRANK_EMU_INLINE __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __float2bfloat16_rn(__bfloat162float(a) * __bfloat162float(b));
}
LOWRANK_EMU_INLINE __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}

// -------------------------------------------------------------------------------------------- f16

namespace lowrank::emu {
typedef short EightHalves __attribute__((vector_size(16)));
}

LOWRANK_EMU_INLINE __half __ushort_as_half(unsigned short bits) { return {bits}; }
LOWRANK_EMU_INLINE unsigned short __half_as_ushort(__half v) { return v.emulated_bits; }
/// Exact; every NaN becomes 0x7fffffff, so that no kernel relies on what it held.
LOWRANK_EMU_INLINE float __half2float(__half v) {
  if ((v.emulated_bits & 0x7fffu) > 0x7c00u) return __uint_as_float(0x7fffffffu);
  // By the instruction: compilers turn comparisons of what _Float16 is widened to into calls.
  lowrank::emu::EightHalves halves = {static_cast<short>(v.emulated_bits)};
  return __builtin_ia32_vcvtph2ps(halves)[0];
}
/// To the nearest, ties to even; every NaN becomes 0x7fff, as cvt.rn.f16.f32 has it.
LOWRANK_EMU_INLINE __half __float2half_rn(float v) {
  if ((__float_as_uint(v) & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {lowrank::emu::BitCast<uint16_t>(static_cast<_Float16>(v))};
}
LOWRANK_EMU_INLINE __half __float2half(float v) { return __float2half_rn(v); }
LOWRANK_EMU_INLINE __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
LOWRANK_EMU_INLINE __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
LOWRANK_EMU_INLINE float2 __half22float2(__half2 v) {
  return {__half2float(v.x), __half2float(v.y)};
}
LOWRANK_EMU_INLINE float __low2float(__half2 v) { return __half2float(v.x); }
LOWRANK_EMU_INLINE float __high2float(__half2 v) { return __half2float(v.y); }
LOWRANK_EMU_INLINE __half2 __halves2half2(__half x, __half y) { return {x, y}; }
LOWRANK_EMU_INLINE __half __hmul(__half a, __half b) {
  return __float2half_rn(__half2float(a) * __half2float(b));
}
LOWRANK_EMU_INLINE __half2 __hmul2(__half2 a, __half2 b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
