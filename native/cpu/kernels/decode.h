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

#include "native/cpu/kernels/rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Summation index per block. Fixed, since it decides the order of summation (a sum over kKC in
// registers, then those sums one by one): an A panel is kMR · 1 KiB and stays in L1. It also keeps
// the rounding error of a long sum near that of its parts.
constexpr int64_t kKC = 256;
constexpr int kGroup = 8;  // codes in 32 bits
// Rows that packing asks for ahead of use: some 100 ns of decoding.
constexpr int64_t kPrefetchRows = 24;

LOWRANK_INLINE bool FusedDecode(const RowSource& source) {
  return source.quant != nullptr && source.quant->format->bits == 4 && source.cols % kGroup == 0;
}

LOWRANK_INLINE bool FusedDirectDecode(const RowSource& source) {
  return source.quant != nullptr && source.quant->format->bits == 4 && source.cols % 16 == 0;
}

/// How far a 32-bit group is shifted for its element e: element 2i is the high nibble of byte i.
constexpr int NibbleShift(int e) { return (e >> 1) * 8 + ((e & 1) == 0 ? 4 : 0); }

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

/// One vector of columns of a B panel: rows [row, row + rows) of w, columns [k0, k0 + kc), to
/// out[unit · stride + lane].
template <bool kPairs, DType kRound>
static void DecodeTransposed(const RowSource& source, int64_t row, int rows, int64_t k0, int64_t kc,
                             float* out, int64_t stride) {
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
      for (int e = 0; e < kGroup; e += 2) {
        const VecF even = Lookup(table, group >> NibbleShift(e)) * scale;
        const VecF odd = Lookup(table, group >> NibbleShift(e + 1)) * scale;
        if constexpr (kPairs) {
          StoreU(out + (g * kGroup + e) / 2 * stride, PairBF16(even, odd));
        } else {
          Store(out + (g * kGroup + e) * stride, RoundTo(kRound, even));
          Store(out + (g * kGroup + e + 1) * stride, RoundTo(kRound, odd));
        }
      }
    }
  }
}

template <bool kPairs>
LOWRANK_INLINE void DecodeColumns(const RowSource& source, int64_t row, int rows, int64_t k0,
                                  int64_t kc, float* out, int64_t stride) {
  if (kPairs || source.round_to == DType::kF32) {
    DecodeTransposed<kPairs, DType::kF32>(source, row, rows, k0, kc, out, stride);
  } else if (source.round_to == DType::kBF16) {
    DecodeTransposed<kPairs, DType::kBF16>(source, row, rows, k0, kc, out, stride);
  } else {
    DecodeTransposed<kPairs, DType::kF16>(source, row, rows, k0, kc, out, stride);
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
