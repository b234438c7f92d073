/// Element types, and correctly rounded conversions between them.
///
/// Every conversion rounds to nearest, ties to even, keeps denormals and the sign of zero, gives
/// infinity on overflow, and maps NaN to a quiet NaN of the same sign (never to infinity).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lowrank {

enum class DType : uint8_t { kF32, kBF16, kF16 };

constexpr size_t DTypeBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
const char* DTypeName(DType dtype);

/// Storage types of the two 16-bit formats. The values are bits, which prevents accidental
/// arithmetic.
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float ToFloat(float value) { return value; }
inline float ToFloat(BF16 value) { return FloatOf(static_cast<uint32_t>(value.bits) << 16); }
/// Exact: every f16 value is an f32 value.
inline float ToFloat(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatOf(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x0400u) return FloatOf(sign | ((magnitude << 13) + (112u << 23)));
  // Denormal: magnitude · 2^-24, exact in f32.
  return FloatOf(sign | BitsOf(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
}

template <typename T>
T FromFloat(float value);

template <>
inline float FromFloat<float>(float value) {
  return value;
}

template <>
inline BF16 FromFloat<BF16>(float value) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return BF16{static_cast<uint16_t>((bits >> 16) | 0x0040u)};  // keep NaN a NaN
  }
  return BF16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
inline F16 FromFloat<F16>(float value) {
  const uint32_t bits = BitsOf(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return F16{static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  }
  if (magnitude >= 0x477ff000u) return F16{static_cast<uint16_t>(sign | 0x7c00u)};  // >= 65520
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24. Adding 0.5 puts that unit at the last bit of
    // the sum's significand, so the addition itself rounds to nearest even.
    const uint32_t shifted = BitsOf(FloatOf(magnitude) + 0.5f);
    return F16{static_cast<uint16_t>(sign | (shifted - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return F16{static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
}

/// f64 to a narrower type in one rounding. Going through f32 with round-to-odd keeps the sticky
/// bit, so the second rounding cannot see a false tie.
template <typename T>
T FromDouble(double value) {
  float nearest = static_cast<float>(value);
  if constexpr (sizeof(T) == 4) {
    return FromFloat<T>(nearest);
  } else {
    const uint32_t bits = BitsOf(nearest);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    if (finite && static_cast<double>(nearest) != value && (bits & 1u) == 0) {
      const double magnitude = value < 0 ? -value : value;
      const double rounded = nearest < 0 ? -static_cast<double>(nearest) : nearest;
      // The odd neighbour on the side of the exact value.
      const uint32_t sign = value < 0 ? 0x80000000u : 0u;
      const uint32_t size = bits & 0x7fffffffu;
      nearest = FloatOf(sign | (magnitude > rounded ? size + 1 : size - 1));
    }
    return FromFloat<T>(nearest);
  }
}

/// Calls `body` with a value of the storage type that `dtype` names.
template <typename Body>
auto VisitDType(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kBF16:
      return body(BF16{});
    case DType::kF16:
      return body(F16{});
    default:
      return body(float{});
  }
}

/// Element `index` of an array of `dtype`.
inline float LoadElement(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kBF16:
      return ToFloat(static_cast<const BF16*>(data)[index]);
    case DType::kF16:
      return ToFloat(static_cast<const F16*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

inline void StoreElement(void* data, DType dtype, int64_t index, double value) {
  switch (dtype) {
    case DType::kBF16:
      static_cast<BF16*>(data)[index] = FromDouble<BF16>(value);
      break;
    case DType::kF16:
      static_cast<F16*>(data)[index] = FromDouble<F16>(value);
      break;
    default:
      static_cast<float*>(data)[index] = static_cast<float>(value);
  }
}

}  // namespace lowrank
