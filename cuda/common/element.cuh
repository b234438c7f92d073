/// Elements as bits: the conversions of native/core/dtype.h on the device, bit for bit (NaN keeps
/// its sign and becomes quiet, denormals stay), for kernels that move tensors and compute little.
/// One instruction per element, and three to keep the NaN bits that the instruction drops.
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/ptx.cuh"

namespace lowrank::gpu {

struct ElementF32 {
  using Bits = uint32_t;
};
struct ElementBF16 {
  using Bits = uint16_t;
};
struct ElementF16 {
  using Bits = uint16_t;
};

LOWRANK_DEVICE float FloatFrom(ElementF32, uint32_t bits) { return __uint_as_float(bits); }
LOWRANK_DEVICE float FloatFrom(ElementBF16, uint32_t bits) { return __uint_as_float(bits << 16); }
LOWRANK_DEVICE float FloatFrom(ElementF16, uint32_t bits) {
  const float value = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  const uint32_t nan = (bits & 0x8000u) << 16 | 0x7f800000u | (bits & 0x3ffu) << 13;
  return value == value ? value : __uint_as_float(nan);
}

LOWRANK_DEVICE uint32_t BitsFrom(ElementF32, float value) { return __float_as_uint(value); }
LOWRANK_DEVICE uint32_t BitsFrom(ElementBF16, float value) {
  const uint32_t nan = __float_as_uint(value) >> 16 | 0x0040u;
  return value == value ? __bfloat16_as_ushort(__float2bfloat16_rn(value)) : nan;
}
LOWRANK_DEVICE uint32_t BitsFrom(ElementF16, float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t nan = (bits >> 16 & 0x8000u) | 0x7e00u | (bits >> 13 & 0x3ffu);
  return value == value ? __half_as_ushort(__float2half_rn(value)) : nan;
}

/// From double in one rounding: through f32 rounded to odd, so that the second rounding sees no
/// false tie.
template <typename T>
LOWRANK_DEVICE uint32_t BitsFromDouble(T type, double value) {
  float nearest = static_cast<float>(value);
  if constexpr (sizeof(typename T::Bits) == 2) {
    const uint32_t bits = __float_as_uint(nearest);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    if (finite && static_cast<double>(nearest) != value && (bits & 1u) == 0) {
      const double magnitude = value < 0 ? -value : value;
      const double rounded = nearest < 0 ? -static_cast<double>(nearest) : nearest;
      const uint32_t sign = value < 0 ? 0x80000000u : 0u;
      const uint32_t size = bits & 0x7fffffffu;
      nearest = __uint_as_float(sign | (magnitude > rounded ? size + 1 : size - 1));
    }
  }
  return BitsFrom(type, nearest);
}

/// One element, at any alignment of its type.
template <typename T>
LOWRANK_DEVICE float LoadElement(T type, const void* g_data, int64_t index) {
  return FloatFrom(type, static_cast<const typename T::Bits*>(g_data)[index]);
}
template <typename T>
LOWRANK_DEVICE void StoreElement(T type, void* g_data, int64_t index, float value) {
  static_cast<typename T::Bits*>(g_data)[index] =
      static_cast<typename T::Bits>(BitsFrom(type, value));
}

/// The contents of 16 bytes, one lane's share in the streaming kernels: neighbouring lanes own
/// neighbouring groups, so that every access of a warp is one contiguous run of bytes.
template <typename T>
struct Group {
  static constexpr int kElems = 16 / static_cast<int>(sizeof(typename T::Bits));
};

LOWRANK_DEVICE void Unpack(ElementF32 type, const uint4& raw, float (&value)[4]) {
  value[0] = FloatFrom(type, raw.x);
  value[1] = FloatFrom(type, raw.y);
  value[2] = FloatFrom(type, raw.z);
  value[3] = FloatFrom(type, raw.w);
}
template <typename T>
LOWRANK_DEVICE void Unpack(T type, const uint4& raw, float (&value)[8]) {
  const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[2 * i] = FloatFrom(type, word[i] & 0xffffu);
    value[2 * i + 1] = FloatFrom(type, word[i] >> 16);
  }
}
LOWRANK_DEVICE uint4 Pack(ElementF32 type, const float (&value)[4]) {
  return make_uint4(BitsFrom(type, value[0]), BitsFrom(type, value[1]), BitsFrom(type, value[2]),
                    BitsFrom(type, value[3]));
}
template <typename T>
LOWRANK_DEVICE uint4 Pack(T type, const float (&value)[8]) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word[i] = BitsFrom(type, value[2 * i]) | BitsFrom(type, value[2 * i + 1]) << 16;
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

}  // namespace lowrank::gpu
