/// The order in which the products of one element of y are added. It depends only on the operands
/// (never on M, the threads or the kernel that runs), so the bits of a row do not depend on the
/// rest of its batch.
///
///   natural   blocks of kKC along k: a sum over each in registers, then those sums one by one
///   by lanes  for 4-bit weights. A vector along k of one row of w then has one scale: it is
///             decoded by a table of 16 products, made once for kGranule codes, and multiplied by x
///             without further work (row_dot.h). Each lane is a separate sum over every kVL-th
///             place; a block is one lane's part of a span, so panels are blocks of at most kKC
///             here too:
///
///     codes of a granule     group 0 (8 codes)   group 1   ...   group 7       32 bytes
///     kVL = 16               lanes 0 and 8       1 and 9         7 and 15      4 places each
///     kVL = 8                lane 0              1               7             8
///     kVL = 4                lane 0              1         ...   3             16: groups 4 to 7
///                                                                              after 0 to 3
///     inside a group         0 4 1 5 (lane l) 2 6 3 7 (lane l + 8 where kVL = 16, else on in l)
///
///   0 and 4 are the same nibble of the low and the high half of a group's 32 bits, so one shift of
///   both halves gives pairs of bf16.
///
/// Sums of lanes and of blocks are added to y's sum in ascending order.
#pragma once

#include "native/cpu/kernels/decode/planes.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Summation index per block. Fixed, because it determines the order of summation. An A panel is kMR
// · 1 KiB and stays in L1. It also limits the rounding error of a long sum to about that of its
// parts.
constexpr int64_t kKC = 256;
constexpr int64_t kMostDepth = 2 * kKC;  // for a block of any policy (pack_int8.h)
constexpr int kGroup = 8;                // codes in 32 bits

// The smallest blocksize in which a whole vector, with all its nibbles, shares a scale. Formats
// with smaller groups have the same granules with several scales (granule.h).
constexpr int64_t kGranule = 64;
constexpr int64_t kGranuleGroups = kGranule / kGroup;
// Places of one lane in a granule, in f32.
constexpr int kPlaces = static_cast<int>(kGranule) / kVL;
// Columns whose lanes form blocks together.
constexpr int64_t kSpan = kVL * kKC;
// Below this depth, the sums of lanes are too short to justify reducing them: at K = 512 a product
// of many rows in bf16 took 14 % longer than in the natural order, at 896 5 %, from 2048 on the
// same.
constexpr int64_t kLeastLaneDepth = 768;

/// The shift of a 32-bit group for its element e: element 2i is the high nibble of byte i.
constexpr int NibbleShift(int e) { return (e >> 1) * 8 + ((e & 1) == 0 ? 4 : 0); }

/// The element of a group at place i of the order.
constexpr int ElementAt(int i) { return (i >> 1 & 1) + (i & 1) * 4 + (i >> 2) * 2; }

/// Its inverse: the place of element e.
constexpr int PlaceInGroup(int e) { return (e >> 2 & 1) + (e & 1) * 2 + (e >> 1 & 1) * 4; }

/// The lane of place i of group g of a granule, and its index among the lane's places.
constexpr int LaneOf(int g, int i) { return kVL == 16 ? g + (i >> 2) * 8 : g % kVL; }
constexpr int PlaceOf(int g, int i) { return kVL == 16 ? i & 3 : i + g / kVL * 8; }

/// The element of a granule at lane l, place p.
constexpr int ElementOf(int l, int p) {
  return kVL == 16 ? l % 8 * 8 + ElementAt(p + l / 8 * 4)
                   : (l + p / 8 * kVL) * 8 + ElementAt(p % 8);
}

/// Blocks in sequence, by their start.
struct SumOrder {
  int64_t depth = 0;
  bool by_lanes = false;

  /// Length of the block at k0, which is a multiple of the length of the earlier blocks.
  int64_t Length(int64_t k0) const {
    if (!by_lanes) return Min(kKC, depth - k0);
    return Min(kSpan, depth - k0 / kSpan * kSpan) / kVL;
  }
};

LOWRANK_INLINE SumOrder NaturalOrder(int64_t depth) { return {depth, false}; }

/// How the codes of a granule become weights.
enum class Granules : uint8_t {
  kNone,          // not by granules
  kOne,           // level · scale, one scale
  kHalves,        // level · scale, a scale for each half or for all
  kHalvesAffine,  // (level - zero) · scale - min, of each half or of all
  kQuarters,      // level · scale, a scale for each quarter
  kCodes,         // codes of another width than four bits (code_granules.h)
};

/// Factors of a granule that its weight stores: 1, 2 or 4. 0: not every granule has as many.
LOWRANK_INLINE int64_t GranuleParts(const QuantView& w) {
  if (!w.planar()) return w.blocksize % kGranule == 0 ? 1 : w.blocksize == kGranule / 2 ? 2 : 0;
  const Planes& planes = w.planes;
  if (planes.grid == PlaneGrid::kTiles && planes.grid_span >= w.cols) return 1;
  if (planes.grid != PlaneGrid::kTiles && planes.grid != PlaneGrid::kFlat) return 0;
  for (int64_t parts : {1, 2, 4}) {
    if (planes.grid_span % (kGranule / parts) == 0) return parts;
  }
  return 0;
}

/// Are weights more than levels times scales?
LOWRANK_INLINE bool IsAffine(const Planes& planes) {
  return planes.zero != nullptr || planes.min.data != nullptr;
}

LOWRANK_INLINE Granules GranulesOf(const QuantView& w) {
  if (w.cols == 0 || w.cols % kGranule != 0) return Granules::kNone;
  const Planes& planes = w.planes;
  const int64_t parts = GranuleParts(w);
  const bool nibbles = w.planar() ? planes.bits == 4 : w.format->bits == 4;
  if (!nibbles) return w.planar() && parts != 0 ? Granules::kCodes : Granules::kNone;
  const bool affine = IsAffine(planes);
  // No published format has zero-points or minima of quarters.
  if (parts == 0 || (parts == 4 && affine)) return Granules::kNone;
  if (parts == 4) return Granules::kQuarters;
  if (w.planar()) return affine ? Granules::kHalvesAffine : Granules::kHalves;
  if (parts == 2) return Granules::kHalves;
  return w.cols % w.blocksize == 0 ? Granules::kOne : Granules::kNone;
}

LOWRANK_INLINE Granules GranulesOf(const RowSource& w) {
  return w.quant == nullptr ? Granules::kNone : GranulesOf(*w.quant);
}

/// Does every granule of w have one scale that is stored as such?
LOWRANK_INLINE bool WholeGranules(const RowSource& w) { return GranulesOf(w) == Granules::kOne; }

LOWRANK_INLINE bool ByGranules(const RowSource& w) { return GranulesOf(w) != Granules::kNone; }

/// Are columns of dx computed in the order of lanes?
LOWRANK_INLINE bool SpreadsColumns(const RowSource& w) {
  const Granules kind = GranulesOf(w);
  return kind != Granules::kNone && kind != Granules::kCodes;
}

/// The order of x · wᵀ. With a matrix unit (`tiles`), "by lanes" means granule after granule, each
/// in the order in which it is decoded (amx_rows.h).
LOWRANK_INLINE SumOrder ForwardOrder(const RowSource& w, bool tiles) {
  return {w.cols, ByGranules(w) && (tiles || w.cols >= kLeastLaneDepth)};
}

}  // namespace lowrank::cpu::LOWRANK_ISA
