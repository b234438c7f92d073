/// A quantised weight whose codes, scales and zero-points lie in planes, with any grid of scales
/// (lib/checkpoint/planar/planar-weight.ts): what checkpoints of other programs hold.
///
///   w[n, k] = level(c) · s       (level(c) - z) · s with zero-points, level(c) · s - m with minima
///   s, m    = own(e), times outer(e / outer_span) where there is one, plus offset where there is
///   e       the entry of (n, k) on the grid
///
/// Codes       a row starts at a whole byte. 4 bits: element 2i in the high nibble of byte i. Other
///             widths: code k at bit k · bits, counted from the low bit of each byte on
/// Numerics    f32, each operation rounded by itself: compile with contraction off
#pragma once

#include "native/host_device/map_function.h"

namespace lowrank {

/// How the numbers of a plane are stored: as the dtypes of that number, or as bytes that a table of
/// 256 values decodes.
enum class PlaneType : uint8_t { kF32, kBF16, kF16, kByte };

/// Where the entry of an element lies.
enum class PlaneGrid : uint8_t {
  kTiles,    // n / grid_rows · grid_pitch + k / grid_span
  kFlat,     // (n · K + k) / grid_span, across the ends of rows
  kOrdered,  // n · grid_pitch + group[k]
  kCyclic,   // (n · K + k) mod grid_span: the elements of a group lie in different rows
};

/// Scales or minima, one for each entry.
struct ScalePlane {
  const void* data;    // null: there is no such plane
  const float* table;  // [256], of bytes
  const void* outer;   // one for outer_span entries; null: 1
  int64_t outer_span;
  float offset;  // added where has_offset
  PlaneType type;
  PlaneType outer_type;  // not kByte
  bool has_offset;
};

/// What is known of a weight's levels besides their table.
enum class LevelRule : uint8_t {
  kTable,   // nothing
  kLinear,  // level(c) = first_level + c, exactly
  kSigned,  // level(c) = c in two's complement of 8 bits
};

struct Planes {
  ScalePlane scale;  // no data: the weight is not planar
  ScalePlane min;
  const void* zero;      // of zero_type, where kByte is the number itself; null: 0
  const int32_t* group;  // [K], with kOrdered: below grid_pitch
  int64_t grid_rows;
  int64_t grid_span;
  int64_t grid_pitch;
  int64_t row_bytes;  // of codes
  int64_t first_row;  // of the grid, for row 0
  PlaneGrid grid;
  PlaneType zero_type;
  uint8_t bits;
  LevelRule rule;
  float first_level;

#if defined(__CUDACC__)
  __host__ __device__
#endif
      bool
      present() const {
    return scale.data != nullptr;
  }
};

LOWRANK_MAP_INLINE float FloatOfBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// Exact, denormals, infinities and NaN included.
LOWRANK_MAP_INLINE float FloatOfHalf(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatOfBits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return FloatOfBits(sign | ((magnitude << 13) + (112u << 23)));
  const float denormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return sign == 0 ? denormal : -denormal;
}

/// Number `at` of a plane.
LOWRANK_MAP_INLINE float PlaneNumber(const void* data, PlaneType type, const float* table,
                                     int64_t at) {
  switch (type) {
    case PlaneType::kF32:
      return static_cast<const float*>(data)[at];
    case PlaneType::kBF16:
      return FloatOfBits(static_cast<uint32_t>(static_cast<const uint16_t*>(data)[at]) << 16);
    case PlaneType::kF16:
      return FloatOfHalf(static_cast<const uint16_t*>(data)[at]);
    default: {
      const uint8_t byte = static_cast<const uint8_t*>(data)[at];
      return table == nullptr ? static_cast<float>(byte) : table[byte];
    }
  }
}

LOWRANK_MAP_INLINE float PlaneScale(const ScalePlane& plane, int64_t entry) {
  float value = PlaneNumber(plane.data, plane.type, plane.table, entry);
  if (plane.outer != nullptr) {
    value = value * PlaneNumber(plane.outer, plane.outer_type, nullptr, entry / plane.outer_span);
  }
  return plane.has_offset ? value + plane.offset : value;
}

LOWRANK_MAP_INLINE int64_t PlaneEntry(const Planes& planes, int64_t cols, int64_t n, int64_t k) {
  const int64_t row = n + planes.first_row;
  switch (planes.grid) {
    case PlaneGrid::kTiles:
      return row / planes.grid_rows * planes.grid_pitch + k / planes.grid_span;
    case PlaneGrid::kFlat:
      return (row * cols + k) / planes.grid_span;
    case PlaneGrid::kCyclic:
      return (row * cols + k) % planes.grid_span;
    default:
      return row * planes.grid_pitch + planes.group[k];
  }
}

/// What an entry does to a level.
struct PlaneFactors {
  float scale;
  float zero;
  float min;
};

LOWRANK_MAP_INLINE PlaneFactors FactorsOf(const Planes& planes, int64_t entry) {
  PlaneFactors factors;
  factors.scale = PlaneScale(planes.scale, entry);
  factors.zero =
      planes.zero == nullptr ? 0.0f : PlaneNumber(planes.zero, planes.zero_type, nullptr, entry);
  factors.min = planes.min.data == nullptr ? 0.0f : PlaneScale(planes.min, entry);
  return factors;
}

/// The weight of a level. Without minima none is subtracted: -0 stays -0.
LOWRANK_MAP_INLINE float PlaneValue(const Planes& planes, float level,
                                    const PlaneFactors& factors) {
  if (planes.zero != nullptr) return (level - factors.zero) * factors.scale;
  const float product = level * factors.scale;
  return planes.min.data == nullptr ? product : product - factors.min;
}

/// Code k of a row of codes.
LOWRANK_MAP_INLINE uint32_t PlaneCode(const uint8_t* row, int32_t bits, int64_t k) {
  if (bits == 8) return row[k];
  if (bits == 4) return (k & 1) == 0 ? row[k >> 1] >> 4 : row[k >> 1] & 15u;
  const int64_t bit = k * bits;
  const int32_t shift = static_cast<int32_t>(bit & 7);
  uint32_t word = row[bit >> 3];
  if (shift + bits > 8) word |= static_cast<uint32_t>(row[(bit >> 3) + 1]) << 8;
  return word >> shift & ((1u << bits) - 1u);
}

}  // namespace lowrank
