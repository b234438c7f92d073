/// The bf16 parts of f32 numbers, rounded, for products of h with a factor (params/lora_pairs.h has
/// the pairs that are multiplied).
#pragma once

#include "cuda/gpu.cuh"
#include "native/host_device/params/lora_pairs.h"

namespace lowrank::gpu {

/// `value`'s bf16 part: 0, 1 and 2 are its leading, middle and last eight bits (each rounded to
/// nearest, so they may differ in sign; together exact for every f32 above 2^-110), as f32 whose
/// low half is zero. A NaN or infinity is its own part 0, with nothing below; `finite_only` leaves
/// it out there too, so that in a sum of products of parts it appears once.
LOWRANK_DEVICE float SplitPart(float value, int part, bool finite_only) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) {
    if (part != 0 || finite_only) return 0.0f;
    // A NaN whose payload lies in the low half only would become an infinity.
    return __uint_as_float((bits & 0xffff0000u) | (magnitude > 0x7f800000u ? 0x00400000u : 0u));
  }
  // Where rounding would overflow, the part is cut off instead.
  const uint32_t round = magnitude >= 0x7f7f8000u ? 0u : 0x8000u;
  const float first = __uint_as_float((bits + round) & 0xffff0000u);
  if (part == 0) return first;
  const float rest = value - first;
  const float second = __uint_as_float((__float_as_uint(rest) + 0x8000u) & 0xffff0000u);
  if (part == 1) return second;
  // Eight bits or fewer are left; rounded only where that is below bf16's smallest denormal.
  return __uint_as_float((__float_as_uint(rest - second) + 0x8000u) & 0xffff0000u);
}

/// Two bf16 parts as an operand pair.
LOWRANK_DEVICE uint32_t PackParts(float low, float high) {
  return (__float_as_uint(low) >> 16) | __float_as_uint(high);
}

/// Part of `pair` of a value, as bf16 bits; `parts` is kPartsOfH or kPartsOfFactor.
LOWRANK_DEVICE uint16_t PairPart(float value, uint32_t parts, int pair) {
  const int part = static_cast<int>(parts >> (2 * pair) & 3u);
  return static_cast<uint16_t>(__float_as_uint(SplitPart(value, part, pair != 0)) >> 16);
}

}  // namespace lowrank::gpu
