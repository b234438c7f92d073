/// y = x · dequant(w)ᵀ for as few rows of x as one register tile holds, from 4-bit codes that never
/// leave the registers.
///
/// Packing w into panels (pack.h) pays where many rows of x meet a panel. For one row it writes and
/// reads 7 bytes of cache for each byte of codes; here a decoded vector goes straight into the
/// sums:
///
///   codes     [group of 8][lane] of kVL rows of w, transposed for kKC columns at a time (2 KiB of
///             L1): a step along k is one shift, one look-up and one product for kVL columns of y
///   scales    [block][lane], transposed as well where blocks begin with rows
///   sums      kRows · kVectors accumulators. kVectors grows as kRows falls, so that there are
///             always enough sums to hide the latency of the multiply-add, and registers for them
///
/// Numerics    those of tile.h, bit for bit: the same products in the same order, in blocks of kKC
/// Memory      rows of w are read along k, kVL · kVectors at a time; each asks for its own line
///             kAhead codes before it is used, since so many streams are too many for the hardware
#pragma once

#include "native/cpu/kernels/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Codes asked for ahead: 8 lines, about 100 ns of decoding for a group of rows.
constexpr int64_t kAhead = 1024;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

constexpr int kMostVectors = 4;

/// Vectors of columns beside kRows: their sums, one decoded vector and one scale each, the table
/// (up to four registers) and the broadcast must stay in registers; more than eight sums hide
/// nothing more.
template <int kRows>
constexpr int FewRowsVectors() {
  int vectors = kMostVectors;
  while (vectors > 1 && ((kRows + 2) * vectors + 6 > kRegisters || kRows * (vectors / 2) >= 8)) {
    vectors /= 2;
  }
  return vectors;
}

/// scales[block][lane] of rows [row, row + rows) of w, for kVL blocks from column k0 on, where
/// every row begins with a block. Past the end of a row the scales are not used.
LOWRANK_INLINE void TransposeScales(const QuantView& w, int64_t row, int rows, int64_t k0,
                                    int shift, float* scales) {
  const int64_t row_blocks = w.cols >> shift;
  const int64_t first = k0 >> shift;
  const int64_t count = Min(kVL, row_blocks - first);
  VecF r[kVL];
  for (int i = 0; i < kVL; ++i) {
    const int64_t block = (row + (i < rows ? i : rows - 1)) * row_blocks + first;
    if (w.absmax != nullptr && count == kVL) {
      r[i] = Load(w.absmax + block);
      continue;
    }
    float decoded[kVL];
    for (int64_t j = 0; j < kVL; ++j) decoded[j] = BlockScale(w, block + Min(j, count - 1));
    r[i] = Load(decoded);
  }
  Transpose(r);
  for (int j = 0; j < kVL; ++j) Store(scales + j * kVL, r[j]);
}

/// Decoded columns, as the tile's steps take them: for each of a group's eight codes (or pairs of
/// them) one vector.
template <bool kPairs, DType kRound>
struct GroupDecoder;

template <DType kRound>
struct GroupDecoder<false, kRound> {
  static constexpr int kSteps = kGroup;
  VecU group;
  VecF scale;

  LOWRANK_MEMBER_INLINE void SetScale(VecF lanes) { scale = lanes; }
  LOWRANK_MEMBER_INLINE void SetGroup(VecU lanes) { group = lanes; }
  LOWRANK_MEMBER_INLINE VecF At(const Table16& table, int step) const {
    return RoundTo(kRound, Lookup(table, group >> NibbleShift(step)) * scale);
  }
};

/// Pairs of bf16: lanes are spread first, so that even and odd codes of a column are neighbours
/// before they are rounded and need no exchange after.
template <DType kRound>
struct GroupDecoder<true, kRound> {
  static constexpr int kSteps = kGroup / 2;
  VecU low, high;
  VecF scale_low, scale_high;

  LOWRANK_MEMBER_INLINE void SetScale(VecF lanes) {
    scale_low = AsFloat(TwiceEachLow(Bits(lanes)));
    scale_high = AsFloat(TwiceEachHigh(Bits(lanes)));
  }
  LOWRANK_MEMBER_INLINE void SetGroup(VecU lanes) {
    low = TwiceEachLow(lanes);
    high = TwiceEachHigh(lanes);
  }
  LOWRANK_MEMBER_INLINE VecF At(const Table16& table, int step) const {
    VecU shifts;
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i)
      shifts[i] = static_cast<uint32_t>(NibbleShift(2 * step + (i & 1)));
    return AsFloat(NeighboursBF16(Lookup(table, low >> shifts) * scale_low,
                                  Lookup(table, high >> shifts) * scale_high));
  }
};

/// One block of the summation index: c [kRows, kVectors · kVL] (+)= a · (codes, scales).
template <typename Policy, DType kRound, int kRows, int kVectors>
static void FewRowsTile(const Table16& table, int64_t groups, int64_t groups_per_scale,
                        const Unit* a, const uint32_t* codes, const float* scales,
                        int64_t scale_stride, float* c, int64_t ldc, bool first) {
  using Decoder = GroupDecoder<Policy::kPairs, kRound>;
  VecF acc[kRows][kVectors] = {};
  Decoder decoder[kVectors];
  int64_t g = 0;
  for (int64_t s = 0; g < groups; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      decoder[v].SetScale(Load(scales + v * scale_stride + s * kVL));
    }
    const int64_t end = Min(g + groups_per_scale, groups);
    for (; g < end; ++g) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        decoder[v].SetGroup(LoadU(codes + (v * (kKC / kGroup) + g) * kVL));
      }
#pragma GCC unroll 8
      for (int step = 0; step < Decoder::kSteps; ++step) {
        VecF columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = decoder[v].At(table, step);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[i][v] = Policy::Step(acc[i][v], a[i], columns[v]);
        }
        a += kRows;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + i * ldc + v * kVL;
      Store(out, first ? acc[i][v] : Load(out) + acc[i][v]);
    }
  }
}

/// Asks for the codes of rows [row, row + rows) that are kAhead columns further, or at the
/// beginning of the next rows.
LOWRANK_INLINE void PrefetchAhead(const QuantView& w, int64_t row, int64_t rows, int64_t k0) {
  int64_t k = k0 + kAhead;
  if (k >= w.cols) {
    k -= w.cols;
    row += rows;
  }
  const int64_t last = Min(row + rows, w.rows);
  for (; row < last; ++row) {
    const uint8_t* line = w.codes + (row * w.cols + k) / 2;
    __builtin_prefetch(line, 0, 2);
    __builtin_prefetch(line + 64, 0, 2);
  }
}

using FewRowsFn = void (*)(const Table16& table, int64_t groups, int64_t groups_per_scale,
                           const Unit* a, const uint32_t* codes, const float* scales,
                           int64_t scale_stride, float* c, int64_t ldc, bool first);

/// The tile for a number of rows, and how many vectors of columns it takes.
struct FewRowsChoice {
  FewRowsFn wide;
  FewRowsFn one;
  int vectors;
};

template <typename Policy, DType kRound, int kRows>
LOWRANK_INLINE FewRowsChoice PickFewRows(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickFewRows<Policy, kRound, kRows - 1>(rows);
  }
  constexpr int kVectors = FewRowsVectors<kRows>();
  return {FewRowsTile<Policy, kRound, kRows, kVectors>, FewRowsTile<Policy, kRound, kRows, 1>,
          kVectors};
}

template <typename Policy>
LOWRANK_INLINE FewRowsChoice PickFewRows(int64_t rows, DType round_to) {
  if (Policy::kPairs || round_to == DType::kF32) return PickFewRows<Policy, DType::kF32, kMR>(rows);
  if (round_to == DType::kBF16) return PickFewRows<Policy, DType::kBF16, kMR>(rows);
  return PickFewRows<Policy, DType::kF16, kMR>(rows);
}

/// `vectors` vectors of columns from n on: all of the summation index. a_at(k0) is x's panel.
template <typename PanelFn>
static void FewRowsColumns(FewRowsFn tile, int vectors, const RowSource& source, int64_t n,
                           int64_t n1, const PanelFn& a_at, float* c, int64_t ldc) {
  const QuantView& w = *source.quant;
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const bool whole_blocks = (w.cols & (w.blocksize - 1)) == 0;
  // Blocks whose scales are held at once: a vector of them, and at least those of kKC columns.
  constexpr int64_t kGroups = kKC / kGroup;
  constexpr int64_t kScaleStride = (kVL > kGroups ? kVL : kGroups) * kVL;
  alignas(64) uint32_t codes[kMostVectors * kGroups * kVL];
  alignas(64) float scales[kMostVectors * kScaleStride];
  const int64_t held = Max(kVL, kKC >> shift);
  for (int64_t k0 = 0; k0 < w.cols; k0 += kKC) {
    const int64_t groups = Min(kKC, w.cols - k0) / kGroup;
    PrefetchAhead(w, n, Min(vectors * kVL, n1 - n), k0);
    const int64_t first_block = whole_blocks ? (k0 >> shift) % held : 0;
    const bool refill = first_block == 0 && (k0 & (w.blocksize - 1)) == 0;
    int64_t groups_per_scale = Min(w.blocksize, kKC) / kGroup;
    for (int v = 0; v < vectors; ++v) {
      const int64_t row = n + v * kVL;
      const int rows = static_cast<int>(Min(kVL, n1 - row));
      TransposeCodes(w.codes + (row * w.cols + k0) / 2, w.cols / 2, rows, groups,
                     codes + v * kGroups * kVL);
      float* lanes = scales + v * kScaleStride;
      if (!whole_blocks) {
        groups_per_scale = GatherScales(w, row, rows, k0, groups, lanes);
        continue;
      }
      for (int64_t b = 0; refill && b < held && k0 + (b << shift) < w.cols; b += kVL) {
        TransposeScales(w, row, rows, k0 + (b << shift), shift, lanes + b * kVL);
      }
    }
    tile(source.table, groups, groups_per_scale, a_at(k0), codes, scales + first_block * kVL,
         kScaleStride, c, ldc, k0 == 0);
  }
}

/// Does AccumulateFewRows take this product?
LOWRANK_INLINE bool TakesFewRows(int64_t rows, const RowSource& w) {
  return rows <= kMR && w.cols >= kGroup && FusedDecode(w);
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index, where TakesFewRows() holds and
/// the chunk is all of the block's rows.
template <typename Policy>
LOWRANK_INLINE void AccumulateFewRows(Run& run, const PackedChunk& chunk, const RowSource& w,
                                      const Block& block, float* c) {
  const FewRowsChoice choice = PickFewRows<Policy>(chunk.rows, w.round_to);
  const auto a_at = [&](int64_t k0) { return chunk.At<Policy>(k0, 0); };
  int64_t n = block.n0;
  while (n < block.n1 && !run.Stopped()) {
    const bool wide = n + (choice.vectors - 1) * kVL < block.n1;
    FewRowsColumns(wide ? choice.wide : choice.one, wide ? choice.vectors : 1, w, n, block.n1, a_at,
                   c + n - block.n0, block.ldc());
    n += (wide ? choice.vectors : 1) * kVL;
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
