/// Elements of tensors whose type is known at run time: one branch, uniform in a warp.
#pragma once

#include "cuda/common/element.cuh"
#include "native/host_device/params/elementwise.h"

namespace lowrank::gpu {

LOWRANK_DEVICE float LoadSmall(int32_t element, const void* g_data, int64_t index) {
  if (element == kSmallF32) return LoadElement(ElementF32(), g_data, index);
  if (element == kSmallBF16) return LoadElement(ElementBF16(), g_data, index);
  return LoadElement(ElementF16(), g_data, index);
}

LOWRANK_DEVICE void StoreSmall(int32_t element, void* g_data, int64_t index, float value) {
  if (element == kSmallF32) return StoreElement(ElementF32(), g_data, index, value);
  if (element == kSmallBF16) return StoreElement(ElementBF16(), g_data, index, value);
  StoreElement(ElementF16(), g_data, index, value);
}

/// `value` as the element can hold it.
LOWRANK_DEVICE float RoundSmall(int32_t element, float value) {
  if (element == kSmallF32) return value;
  if (element == kSmallBF16) return FloatFrom(ElementBF16(), BitsFrom(ElementBF16(), value));
  return FloatFrom(ElementF16(), BitsFrom(ElementF16(), value));
}

/// Eight neighbours as stored: 16-bit ones in the first words.
struct SmallEight {
  uint4 words[2];
};

/// Elements [index, index + 8), with zeros from `inside` on. `aligned`: indexes 0, 8, 16, ... are
/// at multiples of 16 bytes.
LOWRANK_DEVICE SmallEight LoadSmallEight(int32_t element, const void* g_data, int64_t index,
                                         int inside, bool aligned) {
  SmallEight eight = {{{0, 0, 0, 0}, {0, 0, 0, 0}}};
  if (aligned && inside >= 8) {
    if (element == kSmallF32) {
      const uint4* g_words =
          reinterpret_cast<const uint4*>(static_cast<const float*>(g_data) + index);
      eight.words[0] = g_words[0];
      eight.words[1] = g_words[1];
    } else {
      eight.words[0] =
          *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(g_data) + index);
    }
    return eight;
  }
  uint32_t words[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= inside) continue;
    if (element == kSmallF32) {
      words[i] = static_cast<const uint32_t*>(g_data)[index + i];
    } else {
      const uint32_t bits = static_cast<const uint16_t*>(g_data)[index + i];
      words[i / 2] |= bits << (16 * (i % 2));
    }
  }
  eight.words[0] = make_uint4(words[0], words[1], words[2], words[3]);
  eight.words[1] = make_uint4(words[4], words[5], words[6], words[7]);
  return eight;
}

LOWRANK_DEVICE void EightToFloats(int32_t element, const SmallEight& eight, float (&values)[8]) {
  const uint32_t words[8] = {eight.words[0].x, eight.words[0].y, eight.words[0].z,
                             eight.words[0].w, eight.words[1].x, eight.words[1].y,
                             eight.words[1].z, eight.words[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (element == kSmallF32) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const uint32_t bits = i % 2 == 0 ? words[i / 2] & 0xffffu : words[i / 2] >> 16;
      values[i] = element == kSmallBF16
                      ? __uint_as_float(bits << 16)
                      : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
  }
}

}  // namespace lowrank::gpu
