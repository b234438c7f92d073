/// Operands of `compute: 'int8'`: x quantised row by row, 4-bit weights decoded to int8 codes.
///
///   x       blocks of kInt8Block along k: scale = max|x| / 127, code = x / scale, nearest,
///           ties to even, within ±127. A scale of 0 has codes of 0. If an element is not finite,
///           the scale is NaN, and so is every output of the row
///   w       code = 127 · codebook[i] / c rounded to nearest, ties to even, with c the largest
///           |codebook[i]|; scale = absmax · (c / 127). NaN if a codebook is not finite
///
/// A segment is the part of a block of x that has one scale of w. If rows of w have whole blocks of
/// 64 or more, a block of x has one segment, otherwise up to three. A panel then has one copy of
/// the block per segment, with the codes of that segment and zeros for the others.
///
///   A panel   [block]( codes [kCodeUnits][mr] · correction [mr] · scale [mr] )
///   B panel   segments [kPanelHeader], then
///             [block][segment]( codes [kCodeUnits][nr] · scale [nr] )
///
/// A unit is kCodesPerUnit neighbours in the order in which decoding leaves them (CodeAt).
#pragma once

#include "native/cpu/kernels/int8/code_sums.h"
#include "native/cpu/kernels/pack/pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

constexpr int64_t kInt8Block = 64;
constexpr int kMostSegments = 3;
constexpr int kCodeUnits = static_cast<int>(kInt8Block) / kCodesPerUnit;
constexpr int kBlockUnits = kCodeUnits + 2;
constexpr int kPanelHeader = 16;

/// The element of a group of eight at place i. Bytes of a 32-bit group are pairs of codes, the
/// first in the high nibbles; sign extension of bytes to pairs of 16 bits takes every other one.
constexpr int CodeAt(int i) {
  return kCodesPerUnit == 4 ? i % 4 * 2 + i / 4 : i % 2 * 4 + i / 2 % 2 * 2 + i / 4;
}

/// int8 codes with sums in int32: what the policies of pack.h are for exact products.
struct Int8Policy {
  static constexpr bool kCodes = true;
  static constexpr bool kPairs = false;
  static constexpr bool kTiles = false;
  static constexpr int64_t Blocks(int64_t kc) { return (kc + kInt8Block - 1) / kInt8Block; }
  static constexpr int64_t Units(int64_t kc) { return Blocks(kc) * kBlockUnits; }
};

template <typename Policy>
constexpr bool kIsInt8 = false;
template <>
constexpr bool kIsInt8<Int8Policy> = true;

/// Summation index per block of packed operands: kKC if it determines the order of sums. The scales
/// determine that order for codes, which take a quarter of the bytes.
template <typename Policy>
constexpr int64_t kDepth = kKC;
template <>
constexpr int64_t kDepth<Int8Policy> = kMostDepth;

/// Rows of units in a B panel that matches an A panel of Units(kc) columns.
template <typename Policy>
constexpr int64_t PanelUnits(int64_t kc) {
  if constexpr (kIsInt8<Policy>) {
    return (kPanelHeader + kNR - 1) / kNR + Policy::Blocks(kc) * kMostSegments * (kCodeUnits + 1);
  } else {
    return Policy::Units(kc);
  }
}

/// The nearest integer, ties to even, for |v| < 2^22: adding 1.5 · 2^23 leaves no bits for a
/// fraction.
LOWRANK_INLINE VecI RoundToInt(VecF v) {
  const VecF magic = Splat(12582912.0f);
  return reinterpret_cast<VecI>(v + magic) - reinterpret_cast<VecI>(magic);
}

/// Reorders codes to the order of units: those of each group of eight by CodeAt.
template <int... kPlace>
LOWRANK_INLINE void OrderCodes(const UnitCode* in, UnitCode* out,
                               std::integer_sequence<int, kPlace...>) {
  typedef UnitCode Codes __attribute__((vector_size(sizeof...(kPlace) * sizeof(UnitCode))));
  for (int i = 0; i < kInt8Block; i += static_cast<int>(sizeof...(kPlace))) {
    Codes codes;
    std::memcpy(&codes, in + i, sizeof(codes));
    codes = __builtin_shufflevector(codes, codes,
                                    (kPlace / kGroup * kGroup + CodeAt(kPlace % kGroup))...);
    std::memcpy(out + i, &codes, sizeof(codes));
  }
}

/// The largest magnitude of `count` elements, whole vectors, as its bits. These have the order of
/// the magnitudes, with Inf and NaN last.
LOWRANK_INLINE uint32_t LargestBits(const float* x, int64_t count) {
  VecU largest = {};
#pragma GCC unroll 16
  for (int64_t i = 0; i < count; i += kVL) {
    const VecU magnitude = LoadU(x + i) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return MaxLane(largest);
}

/// The scale of elements whose largest magnitude has these bits.
LOWRANK_INLINE float CodeScale(uint32_t bits) {
  if (bits >= 0x7f800000u) return __builtin_nanf("");
  float most;
  std::memcpy(&most, &bits, 4);
  return most / 127.0f;
}

/// Converts `count` elements, whole vectors, to codes of a scale that is a number. Returns their
/// sums.
LOWRANK_INLINE VecI ToCodes(const float* x, int64_t count, float scale, UnitCode* codes) {
  const VecF divisor = Splat(scale == 0 ? __builtin_inff() : scale);
  VecI total = {};
#pragma GCC unroll 16
  for (int64_t i = 0; i < count; i += kVL) {
    VecF v = Load(x + i) / divisor;
    // Beyond ±127 only if the scale is a denormal with a large rounding error.
    v = v > 127.0f ? Splat(127.0f) : v;
    v = v < -127.0f ? Splat(-127.0f) : v;
    const VecI code = RoundToInt(v);
    total += code;
    StoreCodes(codes + i, code);
  }
  return total;
}

/// Converts one block of x, zero-padded, to codes in the order of units. Returns the scale.
LOWRANK_INLINE float QuantizeBlock(const float* x, UnitCode* codes, int32_t* sum) {
  const float scale = CodeScale(LargestBits(x, kInt8Block));
  if (scale != scale) {
    std::memset(codes, 0, kInt8Block * sizeof(UnitCode));
    *sum = 0;
    return scale;
  }
  alignas(64) UnitCode plain[kInt8Block];
  const VecI total = ToCodes(x, kInt8Block, scale, plain);
  OrderCodes(plain, codes, std::make_integer_sequence<int, 16 / sizeof(UnitCode)>());
  *sum = SumLanes(total);
  return scale;
}

// Maximum rows of an A panel, or columns of a matrix unit's panel.
constexpr int kMostCodeRows = kMR > 16 ? kMR : 16;

/// The A panel of rows [m0, m0 + rows), columns [k0, k0 + kc) of x. It has room for mr rows.
static void PackInt8Rows(const RowSource& x, int64_t m0, int rows, int mr, int64_t k0, int64_t kc,
                         float* out) {
  constexpr int64_t kBlocks = kDepth<Int8Policy> / kInt8Block;
  alignas(64) float row[kDepth<Int8Policy>];
  alignas(64) UnitCode codes[kMostCodeRows][kDepth<Int8Policy>];
  float scales[kBlocks][kMostCodeRows];
  int32_t corrections[kBlocks][kMostCodeRows];
  const int64_t blocks = Int8Policy::Blocks(kc);
  for (int i = rows; i < mr; ++i) {
    std::memset(codes[i], 0, sizeof(codes[i]));
    for (int64_t b = 0; b < blocks; ++b) {
      scales[b][i] = 0;
      corrections[b][i] = 0;
    }
  }
  for (int i = 0; i < rows; ++i) {
    RowAsFloat(x, m0 + i, k0, kc, row);
    for (int64_t k = kc; k < blocks * kInt8Block; ++k) row[k] = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      int32_t sum;
      scales[b][i] = QuantizeBlock(row + b * kInt8Block, codes[i] + b * kInt8Block, &sum);
      corrections[b][i] = -kWeightOffset * sum;
    }
  }
  const float* limit = out + blocks * kBlockUnits * mr;
  for (int64_t b = 0; b < blocks; ++b, out += kBlockUnits * mr) {
    TransposeRows<Int8Policy>(reinterpret_cast<const char*>(codes[0] + b * kInt8Block),
                              sizeof(codes[0]), mr, kCodeUnits, out, mr, limit);
    std::memcpy(out + kCodeUnits * mr, corrections[b], static_cast<size_t>(mr) * 4);
    std::memcpy(out + (kCodeUnits + 1) * mr, scales[b], static_cast<size_t>(mr) * 4);
  }
}

/// A 4-bit weight as int8 codes: the data that all tasks of a product share.
struct Int8Weight {
  const QuantView* w;
  VecU table;    // the codes, plus kWeightOffset
  float unit;    // the largest |codebook| / 127
  int segments;  // per block of x
};

LOWRANK_INLINE Int8Weight MakeInt8Weight(const QuantView& w) {
  Int8Weight weight;
  weight.w = &w;
  uint32_t largest = 0;
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    std::memcpy(&bits, w.codebook + i, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float most;
  std::memcpy(&most, &largest, 4);
  const bool finite = largest < 0x7f800000u;
  uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) {
    const float code = finite && most != 0 ? 127.0f * w.codebook[i] / most : 0.0f;
    bytes[i] = static_cast<uint8_t>(RoundToInt(Splat(code))[0] + kWeightOffset);
  }
  weight.table = ByteTable(bytes);
  weight.unit = finite ? most / 127.0f : __builtin_nanf("");
  const bool whole = w.cols % Min(w.blocksize, kInt8Block) == 0 || w.rows == 1;
  weight.segments = w.blocksize >= kInt8Block ? (whole ? 1 : 2) : (whole ? 2 : 3);
  return weight;
}

/// codes[group][lane] of rows [row, row + rows), columns [k0, k0 + kc), for any K; zero-padded to a
/// whole block.
LOWRANK_INLINE void GatherCodes(const QuantView& w, int64_t row, int rows, int64_t k0, int64_t kc,
                                uint32_t* codes) {
  const int64_t groups = CeilDiv(kc, kGroup);
  const int64_t padded = CeilDiv(kc, kInt8Block) * (kInt8Block / kGroup);
  if (w.cols % 2 == 0) {
    TransposeCodes(w, row, rows, k0, groups, codes);
    if (kc % kGroup != 0) {
      uint32_t* last = codes + (groups - 1) * kVL;
      StoreU(last, LoadU(last) & SplatU((1u << (kc % kGroup * 4)) - 1));
    }
  } else {
    for (int i = 0; i < kVL; ++i) {
      const int64_t begin = (row + Min(i, rows - 1)) * w.cols + k0;
      for (int64_t g = 0; g < groups; ++g) {
        uint32_t group = 0;
        for (int64_t e = g * kGroup; e < Min((g + 1) * kGroup, kc); ++e) {
          const uint32_t pair = w.codes[(begin + e) >> 1];
          const uint32_t code = ((begin + e) & 1) == 0 ? pair >> 4 : pair & 15;
          group |= code << NibbleShift(static_cast<int>(e % kGroup));
        }
        codes[g * kVL + i] = group;
      }
    }
  }
  std::memset(codes + groups * kVL, 0, static_cast<size_t>((padded - groups) * kVL) * 4);
}

/// Bytes of ones where element first + 2 · byte is in [begin, end) of its lane.
LOWRANK_INLINE VecU SegmentMask(VecI begin, VecI end, int first) {
  VecU mask = {};
#pragma GCC unroll 4
  for (int byte = 0; byte < 4; ++byte) {
    const VecI inside = (begin <= first + 2 * byte) & (end > first + 2 * byte);
    mask |= reinterpret_cast<VecU>(inside) & (0xffu << (8 * byte));
  }
  return mask;
}

/// The codes of a group of eight in every lane: those of its high nibbles, and those of its low
/// ones.
LOWRANK_INLINE void LookUpGroup(VecU table, VecU group, VecU (&values)[2]) {
  values[0] = LookupNibbles(table, group >> 4);
  values[1] = LookupNibbles(table, group);
}

/// take(unit) for each unit of four codes.
template <typename Take>
LOWRANK_INLINE void EachUnit(VecU codes, const Take& take) {
  if constexpr (kCodesPerUnit == 4) {
    take(codes);
  } else {
    typedef int16_t VecS __attribute__((vector_size(kVL * 4)));
    take(reinterpret_cast<VecU>(reinterpret_cast<VecS>(codes << 8) >> 8));
    take(reinterpret_cast<VecU>(reinterpret_cast<VecS>(codes) >> 8));
  }
}

/// The codes of one segment of one block of x, for a vector of columns; units are `stride` apart.
/// With kMasked those outside [begin, end) are zero.
template <bool kMasked>
LOWRANK_INLINE void DecodeSegment(const Int8Weight& weight, const uint32_t* codes, VecI begin,
                                  VecI end, float* out, int64_t stride) {
  const uint32_t zero = kWeightOffset * 0x01010101u;
#pragma GCC unroll 8
  for (int g = 0; g < static_cast<int>(kInt8Block) / kGroup; ++g) {
    VecU values[2];
    LookUpGroup(weight.table, LoadU(codes + g * kVL), values);
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      VecU value = values[odd];
      if constexpr (kMasked) {
        value = ((value ^ zero) & SegmentMask(begin, end, g * kGroup + odd)) ^ zero;
      }
      EachUnit(value, [&](VecU unit) {
        StoreU(out, unit);
        out += stride;
      });
    }
  }
}

/// scales[block][lane] of rows [row, row + rows), columns [k0, k0 + kc), if each block has one.
LOWRANK_INLINE void GatherWholeScales(const QuantView& w, int64_t row, int rows, int64_t k0,
                                      int64_t kc, float* scales) {
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const int64_t blocks = CeilDiv(kc, kInt8Block);
  const float* absmax = w.absmax;
  for (int i = 0; i < kVL; ++i) {
    const int64_t begin = (row + Min(i, rows - 1)) * w.cols + k0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t block = (begin + b * kInt8Block) >> shift;
      scales[b * kVL + i] = absmax != nullptr ? absmax[block] : BlockScale(w, block);
    }
  }
}

/// The part of block [k, k + length) of columns in which lanes have their s-th scale.
struct Segment {
  alignas(64) int32_t begin[kVL];
  alignas(64) int32_t end[kVL];
  alignas(64) float scale[kVL];

  LOWRANK_MEMBER_INLINE void Set(const QuantView& w, int64_t row, int rows, int64_t k,
                                 int64_t length, int s) {
    const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
    for (int i = 0; i < kVL; ++i) {
      const int64_t e = (row + Min(i, rows - 1)) * w.cols + k;
      const int64_t at = (e >> shift) + s;
      begin[i] = static_cast<int32_t>(Min(Max((at << shift) - e, 0), length));
      end[i] = static_cast<int32_t>(Min(((at + 1) << shift) - e, length));
      // A lane without this segment: its sum is 0, and must stay 0 whatever follows in w.
      scale[i] = begin[i] < end[i] ? BlockScale(w, at) : 0.0f;
    }
  }
};

/// One vector of columns of a B panel: rows [row, row + rows) of w, columns [k0, k0 + kc).
static void DecodeInt8(const Int8Weight& weight, int64_t row, int rows, int64_t k0, int64_t kc,
                       float* out, int64_t stride) {
  constexpr int64_t kGroups = kInt8Block / kGroup;
  const QuantView& w = *weight.w;
  const VecF unit = Splat(weight.unit);
  alignas(64) uint32_t codes[kDepth<Int8Policy> / kGroup * kVL];
  GatherCodes(w, row, rows, k0, kc, codes);
  if (weight.segments == 1) {
    alignas(64) float scales[kDepth<Int8Policy> / kInt8Block * kVL];
    GatherWholeScales(w, row, rows, k0, kc, scales);
    const float* scale = scales;
    for (int64_t g = 0; g * kGroup < kc; g += kGroups, scale += kVL) {
      DecodeSegment<false>(weight, codes + g * kVL, VecI{}, VecI{}, out, stride);
      Store(out + kCodeUnits * stride, Load(scale) * unit);
      out += (kCodeUnits + 1) * stride;
    }
    return;
  }
  for (int64_t k = 0; k < kc; k += kInt8Block) {
    for (int s = 0; s < weight.segments; ++s, out += (kCodeUnits + 1) * stride) {
      Segment segment;
      segment.Set(w, row, rows, k0 + k, Min(kInt8Block, kc - k), s);
      DecodeSegment<true>(weight, codes + k / kGroup * kVL,
                          reinterpret_cast<VecI>(LoadU(segment.begin)),
                          reinterpret_cast<VecI>(LoadU(segment.end)), out, stride);
      Store(out + kCodeUnits * stride, Load(segment.scale) * unit);
    }
  }
}

/// 4-bit rows of w as B panels of the int8 policy, for any K, in one pass.
struct Int8Columns {
  const RowSource& source;
  const Int8Weight& weight;

  using Decoder = NoDecoder;
  static constexpr bool kByPanels = false;  // no faster: these panels are a quarter as large

  /// Nothing to prefetch in parallel with tiles (TransposedB).
  void Ask(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t) const {}
  void operator()(int64_t k0, int64_t kc, int64_t n0, int64_t n1, float* out) const {
    const int64_t stride = PanelStride(PanelUnits<Int8Policy>(kc));
    for (int64_t n = n0; n < n1; n += kNR, out += stride) {
      const int64_t nr = PanelWidth(n, n1);
      std::memcpy(out, &weight.segments, sizeof(weight.segments));
      for (int64_t v = 0; v < nr; v += kVL) {
        const int rows = static_cast<int>(Max(Min(kVL, n1 - n - v), 1));
        const int64_t row = Min(n + v, n1 - 1);
        // All of the next rows at once: a few with each block of these took 4 % longer.
        for (int64_t i = row + kVL; i < row + 2 * kVL; ++i) PrefetchRow(source, i, k0, kc);
        DecodeInt8(weight, row, rows, k0, kc, out + kPanelHeader + v, nr);
      }
    }
  }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
