/// What translated PTX is written in: bits and values, and the instructions that C++ has no
/// operator for. Semantics are those of the PTX ISA, to the bit; approximate instructions are the
/// correctly rounded ones of the C library, and the payload of a NaN is the host's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda/emulator/hopper/hopper.h"
#include "cuda/emulator/runtime.h"

namespace lowrank::emu::ptx {

using int128_t = __int128;
using uint128_t = unsigned __int128;

// ------------------------------------------------------------------------------------ bits, memory

template <typename To, typename From>
inline To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float AsFloat(uint32_t bits) { return BitCast<float>(bits); }
inline double AsDouble(uint64_t bits) { return BitCast<double>(bits); }
inline uint32_t Bits(float value) { return BitCast<uint32_t>(value); }
inline uint64_t Bits(double value) { return BitCast<uint64_t>(value); }

/// An access of any alignment. Not a function: a memory fault is told at the line that makes it.
template <typename T>
struct __attribute__((packed, may_alias)) Unaligned {
  T value;
};

/// A shared address as a host pointer. Past the window there is other memory of this process.
inline char* SharedAt(const Thread* thread, uint32_t address, Site site) {
  if (__builtin_expect(address >= kSharedWindow, 0)) {
    Fail("oob-shared", site, "shared address 0x%x, outside the window", address);
  }
  return reinterpret_cast<char*>(thread->block->shared_window) + address;
}

/// Before a volatile, relaxed, acquiring or releasing access.
inline void NoteStrong(const void* ptr, uint32_t bytes, bool write, Site site, Scope scope) {
  if (__builtin_expect(observing, 0)) {
    AccessSlow(ptr, bytes, write ? AccessKind::kAtomicStore : AccessKind::kAtomicLoad, site, scope);
  }
}
/// Before a load through the non-coherent cache.
inline void NoteNonCoherent(const void* ptr, uint32_t bytes, Site site) {
  if (__builtin_expect(observing, 0)) AccessSlow(ptr, bytes, AccessKind::kReadNonCoherent, site);
}

/// A read-modify-write; returns what was there.
template <typename T, typename Next>
inline T Atomic(void* at, Next next_of) {
  T* const ptr = static_cast<T*>(at);
  T old;
  __atomic_load(ptr, &old, __ATOMIC_RELAXED);
  T next = next_of(old);
  while (!__atomic_compare_exchange(ptr, &old, &next, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    next = next_of(old);
  }
  return old;
}

// ------------------------------------------------------------------------------------------ floats

template <typename T>
inline bool Ordered(T x, T y) {
  return !std::isnan(x) && !std::isnan(y);
}
/// .ftz: a subnormal is a zero of its sign.
inline float Flush(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}
/// .sat: to [0, 1], NaN to 0.
template <typename T>
inline T Saturate(T x) {
  return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
}
/// .relu: NaN stays.
template <typename T>
inline T Relu(T x) {
  return x > T(0) || std::isnan(x) ? x : T(0);
}
/// The other operand where one is NaN, and -0 < +0.
template <typename T>
inline T Min(T x, T y) {
  if (std::isnan(x)) return y;
  if (std::isnan(y)) return x;
  if (x == y) return std::signbit(x) ? x : y;
  return x < y ? x : y;
}
template <typename T>
inline T Max(T x, T y) {
  if (std::isnan(x)) return y;
  if (std::isnan(y)) return x;
  if (x == y) return std::signbit(x) ? y : x;
  return x > y ? x : y;
}
template <typename T>
inline T MinNaN(T x, T y) {
  return Ordered(x, y) ? Min(x, y) : std::numeric_limits<T>::quiet_NaN();
}
template <typename T>
inline T MaxNaN(T x, T y) {
  return Ordered(x, y) ? Max(x, y) : std::numeric_limits<T>::quiet_NaN();
}

/// The double nearest below or above in magnitude whose last bit tells of an inexact result: what
/// may be rounded once more, to fewer bits, without rounding twice.
inline double RoundToOdd(double rounded, double error) {
  if (error == 0 || !std::isfinite(rounded)) return rounded;
  uint64_t bits = Bits(rounded);
  if ((error < 0) != std::signbit(rounded)) --bits;
  return AsDouble(bits | 1);
}
/// a · b + c of two 16-bit floats (their product is exact in double), for a later rounding.
inline double FmaForRounding(double a, double b, double c) {
  const double product = a * b;
  const double sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (c - back);
  return RoundToOdd(sum, error);
}
/// Nearest float whose last bit tells of an inexact result.
inline float OddFloat(double x) {
  const float nearest = static_cast<float>(x);
  if (std::isnan(x) || static_cast<double>(nearest) == x) return nearest;
  uint32_t bits = Bits(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(x)) --bits;
  return AsFloat(bits | 1);
}

struct BF16 {
  static double Widen(uint16_t bits) { return static_cast<double>(AsFloat(uint32_t{bits} << 16)); }
  /// Nearest, ties to even; every NaN is 0x7fff.
  static uint16_t Round(double x) {
    if (std::isnan(x)) return 0x7fff;
    const uint32_t bits = Bits(OddFloat(x));
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  static double Fma(double a, double b, double c) { return FmaForRounding(a, b, c); }
};
struct F16 {
  /// Every NaN is 0x7fffffff as a float.
  static double Widen(uint16_t bits) {
    if ((bits & 0x7fffu) > 0x7c00u) return static_cast<double>(AsFloat(0x7fffffffu));
    return static_cast<double>(BitCast<_Float16>(bits));
  }
  static uint16_t Round(double x) {
    if (std::isnan(x)) return 0x7fff;
    return BitCast<uint16_t>(static_cast<_Float16>(OddFloat(x)));
  }
  static double Fma(double a, double b, double c) { return FmaForRounding(a, b, c); }
};

/// cvt.rna.tf32: nearest, ties away from zero; the low 13 bits are zero.
inline uint32_t TF32Away(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & 0x007fffffu) != 0 ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}
inline uint32_t TF32Even(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & 0x007fffffu) != 0 ? 0x7fffffffu : bits;
  return (bits + 0x0fffu + ((bits >> 13) & 1u)) & 0xffffe000u;
}

// ---------------------------------------------------------------------------------------- integers

/// A float that is already whole: clamped; NaN is 0, of a double or to 64 bits the highest bit
/// alone.
template <typename To, typename From>
inline To ToInteger(From value) {
  const double x = static_cast<double>(value);
  if (std::isnan(x)) {
    const bool zero = sizeof(To) < 8 && !std::is_same_v<From, double>;
    return zero ? To{0} : static_cast<To>(uint64_t{1} << (sizeof(To) * 8 - 1));
  }
  constexpr bool kSigned = std::is_signed_v<To>;
  const double above = std::ldexp(1.0, static_cast<int>(sizeof(To)) * 8 - (kSigned ? 1 : 0));
  if (x >= above) return std::numeric_limits<To>::max();
  if (x < (kSigned ? -above : 0.0)) return std::numeric_limits<To>::min();
  return static_cast<To>(x);
}
template <typename To, typename From>
inline To SaturateTo(From value) {
  const int128_t x = value;
  const int128_t low = std::numeric_limits<To>::min();
  const int128_t high = std::numeric_limits<To>::max();
  return static_cast<To>(x < low ? low : x > high ? high : x);
}
inline int32_t SaturateS32(int64_t x) { return SaturateTo<int32_t>(x); }

/// Division by zero and its overflow are undefined in C++; the hardware gives these.
template <typename T>
inline T Quotient(T x, T y) {
  if (y == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && y == static_cast<T>(-1))
    return static_cast<T>(uint64_t{0} - static_cast<uint64_t>(x));
  return static_cast<T>(x / y);
}
template <typename T>
inline T Remainder(T x, T y) {
  if (y == 0) return x;
  if (std::is_signed_v<T> && y == static_cast<T>(-1)) return 0;
  return static_cast<T>(x % y);
}

template <typename T>
inline T ShiftLeft(T x, uint32_t amount) {
  return amount >= sizeof(T) * 8 ? T{0} : static_cast<T>(static_cast<uint64_t>(x) << amount);
}
/// Signed types fill with the sign.
template <typename T>
inline T ShiftRight(T x, uint32_t amount) {
  constexpr uint32_t kBits = sizeof(T) * 8;
  if (amount >= kBits) return std::is_signed_v<T> && x < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(x >> amount);
}
inline uint32_t FunnelLeft(uint32_t low, uint32_t high, uint32_t amount) {
  return static_cast<uint32_t>(((uint64_t{high} << 32 | low) << amount) >> 32);
}
inline uint32_t FunnelRight(uint32_t low, uint32_t high, uint32_t amount) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> amount);
}

/// prmt: byte i is byte (selector >> 4 i) & 7 of {b, a}; bit 3 of it spreads that byte's sign.
inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i);
    uint32_t byte = static_cast<uint32_t>(both >> (8 * (pick & 7))) & 0xff;
    if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
// prmt's modes, as the selector of the general one.
inline uint32_t SelectorF4E(uint32_t s) { return 0x3210u + 0x1111u * (s & 3); }
inline uint32_t SelectorB4E(uint32_t s) {
  uint32_t selector = 0;
  for (uint32_t i = 0; i < 4; ++i) selector |= (((s & 3) + 8 - i) & 7) << (4 * i);
  return selector;
}
inline uint32_t SelectorRC8(uint32_t s) { return 0x1111u * (s & 3); }
inline uint32_t SelectorRC16(uint32_t s) { return (s & 1) != 0 ? 0x3232u : 0x1010u; }
inline uint32_t SelectorECL(uint32_t s) {
  uint32_t selector = 0;
  for (uint32_t i = 0; i < 4; ++i) selector |= std::max(i, s & 3) << (4 * i);
  return selector;
}
inline uint32_t SelectorECR(uint32_t s) {
  uint32_t selector = 0;
  for (uint32_t i = 0; i < 4; ++i) selector |= std::min(i, s & 3) << (4 * i);
  return selector;
}

inline uint32_t LeadingZeros32(uint32_t x) {
  return x == 0 ? 32 : static_cast<uint32_t>(__builtin_clz(x));
}
inline uint32_t LeadingZeros64(uint64_t x) {
  return x == 0 ? 64 : static_cast<uint32_t>(__builtin_clzll(x));
}
inline uint64_t Reverse64(uint64_t x) {
  x = (x >> 1 & 0x5555555555555555u) | (x & 0x5555555555555555u) << 1;
  x = (x >> 2 & 0x3333333333333333u) | (x & 0x3333333333333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0f0f0f0f0fu) | (x & 0x0f0f0f0f0f0f0f0fu) << 4;
  return __builtin_bswap64(x);
}
inline uint32_t Reverse32(uint32_t x) { return static_cast<uint32_t>(Reverse64(x) >> 32); }

/// bfe: `length` bits from `position` on; signed types extend the field's last bit that is in the
/// word.
template <typename T>
inline T Extract(T x, uint32_t position, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t kBits = sizeof(T) * 8;
  const uint32_t last = std::min(position + length - 1, kBits - 1);
  const bool sign = std::is_signed_v<T> && length != 0 && (static_cast<U>(x) >> last & 1) != 0;
  const U fill = sign ? static_cast<U>(-1) : U{0};
  if (length == 0) return T{0};
  U result = fill;
  for (uint32_t i = 0; i < std::min(length, kBits); ++i) {
    if (position + i >= kBits) break;
    const U bit = U{1} << i;
    result = (static_cast<U>(x) >> (position + i) & 1) != 0 ? result | bit : result & ~bit;
  }
  return static_cast<T>(result);
}
/// bfi: the low `length` bits of x over those of `into` from `position` on.
template <typename T>
inline T Insert(T x, T into, uint32_t position, uint32_t length) {
  constexpr uint32_t kBits = sizeof(T) * 8;
  if (length == 0 || position >= kBits) return into;
  const T ones = length >= kBits ? static_cast<T>(-1) : static_cast<T>((T{1} << length) - 1);
  const T mask = static_cast<T>(ones << position);
  return static_cast<T>((into & ~mask) | (x << position & mask));
}
/// bmsk: `length` ones from `position` on.
template <bool kClamp>
inline uint32_t Mask(uint32_t position, uint32_t length) {
  if (!kClamp) position &= 31, length &= 31;
  if (position >= 32 || length == 0) return 0;
  const uint32_t ones = length >= 32 ? ~0u : (1u << length) - 1;
  return ones << position;
}
/// szext: x cut to `width` bits and extended again.
template <bool kClamp, typename T>
inline T ExtendFrom(T x, uint32_t width) {
  if (!kClamp) width &= 31;
  if (width == 0) return T{0};
  if (width >= 32) return x;
  const uint32_t up = 32 - width;
  return static_cast<T>(static_cast<T>(static_cast<uint32_t>(x) << up) >> up);
}

/// mul24's operands: the low 24 bits.
inline uint32_t Low24(uint32_t x) { return x & 0xffffffu; }
inline int32_t Low24(int32_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x) << 8) >> 8; }

template <bool kSignedA, bool kSignedB>
inline uint32_t DotBytes(uint32_t a, uint32_t b, uint32_t sum) {
  for (int i = 0; i < 4; ++i) {
    const uint8_t byte_a = static_cast<uint8_t>(a >> (8 * i));
    const uint8_t byte_b = static_cast<uint8_t>(b >> (8 * i));
    const int32_t x = kSignedA ? static_cast<int8_t>(byte_a) : byte_a;
    const int32_t y = kSignedB ? static_cast<int8_t>(byte_b) : byte_b;
    sum += static_cast<uint32_t>(x * y);
  }
  return sum;
}

/// dp2a.lo (kFirst 0) and .hi (2): the halves of a by the bytes of b from kFirst on.
template <int kFirst, bool kSignedA, bool kSignedB>
inline uint32_t DotHalves(uint32_t a, uint32_t b, uint32_t sum) {
  for (int i = 0; i < 2; ++i) {
    const uint16_t half = static_cast<uint16_t>(a >> (16 * i));
    const uint8_t byte = static_cast<uint8_t>(b >> (8 * (kFirst + i)));
    const int32_t x = kSignedA ? static_cast<int16_t>(half) : half;
    const int32_t y = kSignedB ? static_cast<int8_t>(byte) : byte;
    sum += static_cast<uint32_t>(x * y);
  }
  return sum;
}

/// vote.uni: all lanes say the same.
inline bool Uniform(uint32_t mask, bool predicate, Site site) {
  const uint32_t yes = Ballot(mask, predicate, site);
  const uint32_t no = Ballot(mask, !predicate, site);
  return yes == 0 || no == 0;
}

}  // namespace lowrank::emu::ptx
