/// Decoding of 4-bit weights straight into B panels: the whole weight is never in memory, and the
/// panel is written once.
///
///   transposed (y = x · wᵀ)   lanes are kVL rows of w. Their codes are turned as 32-bit groups of
///                             eight, so that a step along k is one shift, one table look-up and
///                             one product for kVL rows
///   direct (dx = dy · w)      lanes are kVL columns of one row
///
/// Numerics   codebook[code] · scale rounded to f32, then once more to the activations' dtype
/// Needs      K a multiple of 8 (direct: of 16): then rows begin on a byte, and a group of eight (a
///            vector) has one scale, since blocksizes are multiples of 32. Other shapes take the
///            row-wise path of pack.h.
#pragma once

#include "native/cpu/kernels/sum_order.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows that packing asks for ahead of use: some 100 ns of decoding.
constexpr int64_t kPrefetchRows = 24;

LOWRANK_INLINE bool FusedDecode(const RowSource& source) {
  return source.quant != nullptr && source.quant->format->bits == 4 && source.cols % kGroup == 0;
}

LOWRANK_INLINE bool FusedDirectDecode(const RowSource& source) {
  return source.quant != nullptr && source.quant->format->bits == 4 && source.cols % 16 == 0;
}

/// Scales of rows [row, row + rows) for each group of eight in columns [k0, k0 + 8 groups), as
/// scales[group / per_scale][lane]. Returns per_scale, the groups that share one.
LOWRANK_INLINE int64_t GatherScales(const QuantView& w, int64_t row, int rows, int64_t k0,
                                    int64_t groups, float* scales) {
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  if ((w.cols & (w.blocksize - 1)) == 0) {
    const int64_t per_scale = Min(w.blocksize, kKC) / kGroup;
    for (int i = 0; i < kVL; ++i) {
      const int64_t begin = (row + Min(i, rows - 1)) * w.cols + k0;
      for (int64_t s = 0; s * per_scale < groups; ++s) {
        scales[s * kVL + i] = BlockScale(w, (begin + s * per_scale * kGroup) >> shift);
      }
    }
    return per_scale;
  }
  for (int i = 0; i < kVL; ++i) {
    const int64_t begin = (row + Min(i, rows - 1)) * w.cols + k0;
    int64_t block = -1;
    float scale = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = (begin + g * kGroup) >> shift;
      if (at != block) {
        block = at;
        scale = BlockScale(w, at);
      }
      scales[g * kVL + i] = scale;
    }
  }
  return 1;
}

/// codes[group][lane], groups of eight little-endian, of kVL rows that are `pitch` bytes apart.
static __attribute__((noinline)) void TransposeCodes(const uint8_t* src, int64_t pitch, int rows,
                                                     int64_t groups, uint32_t* codes) {
  int64_t g = 0;
  for (; g + kVL <= groups; g += kVL) {
    VecF r[kVL];
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) {
      r[i] = Load(src + (i < rows ? i : rows - 1) * pitch + g * 4);
    }
    Transpose(r);
#pragma GCC unroll 16
    for (int j = 0; j < kVL; ++j) Store(codes + (g + j) * kVL, r[j]);
  }
  for (; g < groups; ++g) {
    for (int i = 0; i < kVL; ++i) {
      std::memcpy(codes + g * kVL + i, src + (i < rows ? i : rows - 1) * pitch + g * 4, 4);
    }
  }
}

/// Where a decoded vector of columns goes in a B panel whose units are `stride` apart: the element
/// at place i of group g, in the natural order.
template <bool kPairs>
struct NaturalPlaces {
  float* out;
  int64_t stride;

  static constexpr int Element(int i) { return i; }
  LOWRANK_MEMBER_INLINE float* At(int64_t g, int i) const {
    return out + (g * kGroup + i) / (kPairs ? 2 : 1) * stride;
  }
};

/// The same by lanes: `out` is the panel of lane 0, that of lane l is l · block on.
template <bool kPairs>
struct LanePlaces {
  float* out;
  int64_t stride;
  int64_t block;

  static constexpr int Element(int i) { return ElementAt(i); }
  LOWRANK_MEMBER_INLINE float* At(int64_t g, int i) const {
    const int in_granule = static_cast<int>(g % (kGranule / kGroup));
    const int64_t place = g / (kGranule / kGroup) * kPlaces + PlaceOf(in_granule, i);
    return out + LaneOf(in_granule, i) * block + place / (kPairs ? 2 : 1) * stride;
  }
};

/// One vector of columns of a B panel: rows [row, row + rows) of w, columns [k0, k0 + kc).
template <bool kPairs, DType kRound, typename Places>
static void DecodeTransposed(const RowSource& source, int64_t row, int rows, int64_t k0, int64_t kc,
                             const Places& places) {
  const QuantView& w = *source.quant;
  const int64_t groups = kc / kGroup;
  alignas(64) uint32_t codes[kKC / kGroup * kVL];
  alignas(64) float scales[kKC / kGroup * kVL];
  TransposeCodes(w.codes + (row * w.cols + k0) / 2, w.cols / 2, rows, groups, codes);
  const int64_t per_scale = GatherScales(w, row, rows, k0, groups, scales);
  const Table16 table = source.table;
  int64_t g = 0;
  for (int64_t s = 0; g < groups; ++s) {
    const VecF scale = Load(scales + s * kVL);
    const int64_t end = Min(g + per_scale, groups);
    for (; g < end; ++g) {
      const VecU group = LoadU(codes + g * kVL);
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; i += 2) {
        const VecF even = Lookup(table, group >> NibbleShift(Places::Element(i))) * scale;
        const VecF odd = Lookup(table, group >> NibbleShift(Places::Element(i + 1))) * scale;
        if constexpr (kPairs) {
          StoreU(places.At(g, i), PairBF16(even, odd));
        } else {
          Store(places.At(g, i), RoundTo(kRound, even));
          Store(places.At(g, i + 1), RoundTo(kRound, odd));
        }
      }
    }
  }
}

template <bool kPairs, typename Places>
LOWRANK_INLINE void DecodeColumns(const RowSource& source, int64_t row, int rows, int64_t k0,
                                  int64_t kc, const Places& places) {
  if (kPairs || source.round_to == DType::kF32) {
    DecodeTransposed<kPairs, DType::kF32>(source, row, rows, k0, kc, places);
  } else if (source.round_to == DType::kBF16) {
    DecodeTransposed<kPairs, DType::kBF16>(source, row, rows, k0, kc, places);
  } else {
    DecodeTransposed<kPairs, DType::kF16>(source, row, rows, k0, kc, places);
  }
}

/// Distance between B panels of ku units, in units. The odd 128 bytes keep the same row of
/// neighbouring panels out of one set of the L1 cache: a block is written row by row.
constexpr int64_t PanelStride(int64_t ku) { return ku * kNR + 32; }

/// Columns [n, n + cols) of a row in f32, cols a multiple of kVL, with their scales looked up where
/// a block begins.
struct RowDecoder {
  const QuantView& w;
  Table16 table;
  int shift;
  VecF scale;

  LOWRANK_MEMBER_INLINE VecF At(int64_t e, bool first) {
    if (first || (e & (w.blocksize - 1)) == 0) scale = Splat(BlockScale(w, e >> shift));
    return Lookup(table, SpreadCodes(w.codes + (e >> 1))) * scale;
  }
};

/// B panels of columns [n0, n0 + cols); units are rows [k0, k0 + kc) of w.
template <bool kPairs, DType kRound>
static void DecodeDirect(const RowSource& source, int64_t k0, int64_t kc, int64_t n0, int64_t cols,
                         float* out) {
  const QuantView& w = *source.quant;
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  RowDecoder first = {w, source.table, shift, VecF{}};
  RowDecoder second = first;
  const int64_t ku = kPairs ? (kc + 1) / 2 : kc;
  for (int64_t u = 0; u < ku; ++u) {
    const int64_t row = k0 + (kPairs ? 2 * u : u);
    const bool paired = kPairs && 2 * u + 1 < kc;
    PrefetchRow(source, row + kPrefetchRows, n0, cols);
    if (kPairs) PrefetchRow(source, row + 1 + kPrefetchRows, n0, cols);
    const int64_t e = row * w.cols + n0;
    float* panel = out;
    for (int64_t n = 0; n < cols; n += kNR, panel += PanelStride(ku)) {
      const int64_t nr = Min(kNR, cols - n);
      for (int64_t v = 0; v < nr; v += kVL) {
        const VecF even = first.At(e + n + v, n + v == 0);
        if constexpr (kPairs) {
          const VecF odd = paired ? second.At(e + w.cols + n + v, n + v == 0) : VecF{};
          StoreU(panel + u * nr + v, PairBF16(even, odd));
        } else {
          Store(panel + u * nr + v, RoundTo(kRound, even));
        }
      }
    }
  }
}

template <bool kPairs>
LOWRANK_INLINE void DecodePanels(const RowSource& source, int64_t k0, int64_t kc, int64_t n0,
                                 int64_t cols, float* out) {
  if (kPairs || source.round_to == DType::kF32) {
    DecodeDirect<kPairs, DType::kF32>(source, k0, kc, n0, cols, out);
  } else if (source.round_to == DType::kBF16) {
    DecodeDirect<kPairs, DType::kBF16>(source, k0, kc, n0, cols, out);
  } else {
    DecodeDirect<kPairs, DType::kF16>(source, k0, kc, n0, cols, out);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
