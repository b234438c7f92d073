/// The order in which the products of one element of y are added. It belongs to the operands alone
/// (never to M, the threads or the kernel that runs), which is what gives a row the same bits
/// whatever shares its batch.
///
///   natural   blocks of kKC along k: a sum over each in registers, then those sums one by one
///   by lanes  for 4-bit weights. A vector along k of one row of w then has one scale: it is
///             decoded by a table of 16 products, made once for kGranule codes, and meets x with
///             nothing else to do (row_dot.h). Each lane is a sum of its own, over every kVL-th
///             place; a block is one lane's share of a span, so that panels are blocks of at most
///             kKC here too:
///
///     codes of a granule     group 0 (8 codes)   group 1   ...   group 7       32 bytes
///     kVL = 16               lanes 0 and 8       1 and 9         7 and 15      4 places each
///     kVL = 8                lane 0              1               7             8
///     kVL = 4                lane 0              1         ...   3             16: groups 4 to 7
///                                                                              after 0 to 3
///     inside a group         0 4 1 5 (lane l) 2 6 3 7 (lane l + 8 where kVL = 16, else on in l)
///
///   0 and 4 are the same nibble of the low and the high half of a group's 32 bits, so that pairs
///   of bf16 come from one shift of both halves.
///
/// Sums of lanes and of blocks are added to y's sum in ascending order.
#pragma once

#include "native/cpu/kernels/decode/rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Summation index per block. Fixed, since it decides the order of summation: an A panel is kMR · 1
// KiB and stays in L1. It also keeps the rounding error of a long sum near that of its parts.
constexpr int64_t kKC = 256;
constexpr int64_t kMostDepth = 2 * kKC;  // of any policy's block (pack_int8.h)
constexpr int kGroup = 8;                // codes in 32 bits

// The least blocksize of those formats whose scale all of a vector shares, with all its nibbles.
constexpr int64_t kGranule = 64;
constexpr int64_t kGranuleGroups = kGranule / kGroup;
// Places of one lane in a granule, in f32.
constexpr int kPlaces = static_cast<int>(kGranule) / kVL;
// Columns whose lanes are blocks together.
constexpr int64_t kSpan = kVL * kKC;
// Below, the sums of lanes are too short to pay for adding them up: at K = 512 a product of many
// rows in bf16 took 14 % longer than in the natural order, at 896 5 %, from 2048 on nothing.
constexpr int64_t kLeastLaneDepth = 768;

/// How far a 32-bit group is shifted for its element e: element 2i is the high nibble of byte i.
constexpr int NibbleShift(int e) { return (e >> 1) * 8 + ((e & 1) == 0 ? 4 : 0); }

/// The element of a group at place i of the order.
constexpr int ElementAt(int i) { return (i >> 1 & 1) + (i & 1) * 4 + (i >> 2) * 2; }

/// Its inverse: the place of element e.
constexpr int PlaceInGroup(int e) { return (e >> 2 & 1) + (e & 1) * 2 + (e >> 1 & 1) * 4; }

/// Which lane has place i of group g of a granule, and where among the lane's places.
constexpr int LaneOf(int g, int i) { return kVL == 16 ? g + (i >> 2) * 8 : g % kVL; }
constexpr int PlaceOf(int g, int i) { return kVL == 16 ? i & 3 : i + g / kVL * 8; }

/// The element of a granule that is lane l's place p.
constexpr int ElementOf(int l, int p) {
  return kVL == 16 ? l % 8 * 8 + ElementAt(p + l / 8 * 4)
                   : (l + p / 8 * kVL) * 8 + ElementAt(p % 8);
}

/// Blocks one after another, by where they begin.
struct SumOrder {
  int64_t depth = 0;
  bool by_lanes = false;

  /// Length of the block at k0, which is a multiple of that of those before it.
  int64_t Length(int64_t k0) const {
    if (!by_lanes) return Min(kKC, depth - k0);
    return Min(kSpan, depth - k0 / kSpan * kSpan) / kVL;
  }
};

LOWRANK_INLINE SumOrder NaturalOrder(int64_t depth) { return {depth, false}; }

/// Does every granule of w have one scale?
LOWRANK_INLINE bool WholeGranules(const RowSource& w) {
  return w.quant != nullptr && w.quant->format->bits == 4 && w.quant->blocksize % kGranule == 0 &&
         w.cols % w.quant->blocksize == 0 && w.cols > 0;
}

/// The order of x · wᵀ. With a matrix unit (`tiles`), "by lanes" means granule after granule, each
/// in the order that its decoding leaves it in (amx_rows.h).
LOWRANK_INLINE SumOrder ForwardOrder(const RowSource& w, bool tiles) {
  return {w.cols, WholeGranules(w) && (tiles || w.cols >= kLeastLaneDepth)};
}

}  // namespace lowrank::cpu::LOWRANK_ISA
