/// dx = dy · w for few rows of dy, with w dense or of 4-bit codes: vectors are columns of dx.
///
///   dx[m, k] = Σ_n dy[m, n] · T(codebook[code[n, k]] · absmax[n, k / blocksize])
///
/// Operands   dy    one A panel of at most kDirectRows rows (pack.h)
///            w     rows of w, kDirectUnits of them (or pairs) at a time, granule by granule; for a
///                  dense w by 64 columns
///            sums  [m][column] in L1, for codes in the order of lanes; those of one block
///                  separate from those of all earlier blocks
///
/// A granule of several rows of w is decoded by their tables (granule.h) and added to its sums at
/// once: one load and one store of a sum for kDirectUnits products, whatever the width of a task.
/// So rows of w are read in long pieces, and everything that the products of one row of dy need
/// stays in registers. Threads split the columns of w, or its rows if a task would have all
/// columns: a thread that reads half of every row makes the processor fetch the other half too,
/// while that half is on its way to the other thread.
///
/// Numerics   those of register_tile.h, bit for bit: products in the order of n, sums over kKC in
///            order
///
/// Budget     M = 1: 2.5 operations and a product per 16 weights in f32, 3.3 per 32 in bf16,
///            and 2 / kDirectUnits of loads and stores
#pragma once

#include "native/cpu/kernels/decode/granule.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of dy, one panel, next to the tables and codes of the decoded rows. From 9 rows on, panels
// of w that are decoded once for all rows of dy are faster.
constexpr int kDirectRows = kMR < 8 ? kMR : 8;
// For codes: if a look-up is one load per element, panels are faster from two rows on (4 rows of dy
// in portable code: 2.9 ms instead of 4.1).
constexpr int kDirectCodeRows = kHasLookUps ? kDirectRows : 1;
// For f16: if widening an element takes a dozen operations, panels are as fast from two rows on.
#if defined(__F16C__) || defined(__aarch64__)
constexpr int kDirectHalfRows = kDirectRows;
#else
constexpr int kDirectHalfRows = 1;
#endif
// Rows of w (or pairs) whose tables and codes are in registers at once.
template <bool kPairs>
constexpr int kDirectUnits = kRegisters == 32 ? (kPairs ? 4 : 8) : 4;
// Vectors of columns whose sums are held. A sum takes kUnits dependent products, so with one vector
// a core of 2 x 512 bits waits for itself. From seven rows on there are enough sums (and some
// tables would spill: 1.07 to 1.13 of the time on Zen 4, other processors stay the same). AVX2
// gains nothing, pairs of bf16 lose (Zen 4: up to 1.1).
template <bool kPairs, int kRows>
constexpr int kDirectVectors = kVL == 16 && !kPairs && kRows > 1 && kRows < 7 ? 2 : 1;
// Bytes for the sums of a block of columns: together with the codes, L1.
constexpr int64_t kDirectBytes = 32 << 10;
// Minimum columns of a block, 1 KiB of codes per row: reading half as much at a time from memory
// took twice as long (four rows of dy, core of 2 x 512-bit multiply-adds). Sums of more rows are
// then in L2.
constexpr int64_t kDirectCols = 2048;
// Prefetch distance in rows of w, in pieces of a task's width: two groups, or four.
constexpr int64_t kDirectAhead = 16;

/// Prefetches parts of rows, line by line, a few with each granule of the rows before. A burst of
/// whole rows fills the load buffers (dx of one row took 1.6 times as long).
struct RowLines {
  const char* line;
  const char* row_end;
  int64_t length;  // of a part of a row, in bytes
  int64_t pitch;

  LOWRANK_MEMBER_INLINE RowLines(const void* begin, int64_t row_length, int64_t row_pitch)
      : line(static_cast<const char*>(begin)),
        row_end(line + row_length),
        length(row_length),
        pitch(row_pitch) {}
  template <int kLines>
  LOWRANK_MEMBER_INLINE void Ask() {
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(line + i * 64, 0, 2);
    line += kLines * 64;
    if (__builtin_expect(line >= row_end, 0)) {
      row_end += pitch;
      line = row_end - length;
    }
  }
};

/// Like RowAddresses, but computed at each use.
struct RowsOfPitch {
  const char* first;
  int64_t pitch;

  RowsOfPitch(const void* begin, int64_t row_pitch)
      : first(static_cast<const char*>(begin)), pitch(row_pitch) {}
  LOWRANK_MEMBER_INLINE const char* At(int row) const { return first + row * pitch; }
  LOWRANK_MEMBER_INLINE void Step(int64_t bytes) { first += bytes; }
};

/// The data read from w: codes, granule by granule.
template <bool kPairs, Granules kGranules, typename RoundingOfTables>
struct DirectCodes {
  using Rounding = RoundingOfTables;
  static constexpr bool kScaled = true;
  static constexpr Granules kKind = kGranules;
  template <bool>
  using Rows = GranuleRows<kPairs, kKind>;

  static constexpr int64_t Bytes(int64_t columns) { return columns / 2; }
  static const char* Data(const RowSource& w) {
    return reinterpret_cast<const char*>(w.quant->codes);
  }
};

/// Or values, kGranule of them at a time.
template <bool kPairs, DType kStored>
struct DirectValues {
  static constexpr bool kScaled = false;
  static constexpr Granules kKind = Granules::kNone;
  /// One row, or two rows as pairs. Without kBoth the second may be the first: there is none.
  template <bool kBoth>
  struct Rows {
    const char* row;
    const char* other;

    LOWRANK_MEMBER_INLINE void SetCodes(const char* first, const char* second) {
      row = first;
      other = second;
    }
    LOWRANK_MEMBER_INLINE VecF At(int p) const {
      if constexpr (!kPairs) return LoadWide(row, kStored, p * kVL);
      const VecU even = ZeroExtend(*reinterpret_cast<const LooseH*>(row + p * kVL * 2));
      if (!kBoth && other == row) return AsFloat(even);
      return AsFloat(even | ZeroExtend(*reinterpret_cast<const LooseH*>(other + p * kVL * 2))
                                << 16);
    }
  };

  static constexpr int64_t Bytes(int64_t columns) {
    return columns * (kStored == DType::kF32 ? 4 : 2);
  }
  static const char* Data(const RowSource& w) { return static_cast<const char*>(w.dense->data); }
};

/// Or decoded values, in f32 whatever they will be rounded to as pairs.
template <bool kPairs>
struct DirectDecoded {
  static constexpr bool kScaled = false;
  static constexpr Granules kKind = Granules::kNone;
  template <bool kBoth>
  struct Rows {
    const char* row;
    const char* other;

    LOWRANK_MEMBER_INLINE void SetCodes(const char* first, const char* second) {
      row = first;
      other = second;
    }
    LOWRANK_MEMBER_INLINE VecF At(int p) const {
      const VecF even = Load(row + p * kVL * 4);
      if constexpr (!kPairs) return even;
      const bool both = kBoth || other != row;
      return AsFloat(PairBF16(even, both ? Load(other + p * kVL * 4) : VecF{}));
    }
  };

  static constexpr int64_t Bytes(int64_t columns) { return columns * 4; }
  static const char* Data(const RowSource& w) { return static_cast<const char*>(w.dense->data); }
};

/// Adds kUnits units of w from row k on, over columns [n0, n0 + cols), to sums[m][column].
template <typename Policy, typename Source, int kRows, int kUnits>
static void DirectDot(const RowSource& w, int64_t k, int64_t k1, int64_t n0, int64_t cols,
                      float* scratch, const Unit* a, float* sums, int64_t pitch, bool first) {
  constexpr int64_t kStep = Policy::kPairs ? 2 : 1;
  const Table16 table = w.tables.nibbles;
  const int64_t row_bytes = Source::Bytes(w.cols);
  const char* codes = Source::Data(w) + Source::Bytes(k * w.cols + n0);
  // A group is complete: only a single unit may lack its second row.
  const int64_t rows = kUnits > 1 ? kUnits * kStep : Min(kStep, k1 - k);
  ScaleRows scales = {};
  if constexpr (Source::kScaled) {
    scales = ScalesOf(Source::kKind, *w.quant, k, rows, n0, cols, scratch);
  }
  // With two rows of w per unit, addresses are kept, and so are dy's pairs if they are of one row.
  // With one row of w per unit, computing them is as fast, and there are no registers left.
  using Rows = std::conditional_t<Policy::kPairs, RowAddresses<kUnits * kStep>, RowsOfPitch>;
  Rows code_rows(codes, row_bytes);
  RowLines ahead(codes + kDirectAhead * row_bytes, Source::Bytes(cols), row_bytes);
  constexpr bool kHolds = Policy::kPairs && kRows == 1;
  constexpr int kHeld = kDirectVectors<Policy::kPairs, kRows>;
  VecF held[kUnits];
  // dy's values again, for the products of the second vector: a memory operand. A shared register
  // would be loaded by an instruction on a pipe that products need (1.25 of the time on Zen 4),
  // which the compiler prefers if it sees that both are the same.
  const Unit* a_again = a;
  if constexpr (kHeld > 1) __asm__("" : "+r"(a_again));
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) {
    held[u] = Splat(a[u * kRows]);
    if constexpr (kHolds) Pin(held[u]);
  }
  constexpr int kLines = static_cast<int>((kUnits * kStep * Source::Bytes(kGranule) + 63) / 64);
  const auto other_row = [&](int row) {
    return kUnits > 1 || row + 1 < rows ? row + static_cast<int>(kStep) - 1 : row;
  };
  typename Source::template Rows<(kUnits > 1)> granule[kUnits];
  const auto scales_at = [&](int64_t n) {
    return Rows(scales.data + scales.Index(n / kGranule),
                scales.pitch * static_cast<int64_t>(sizeof(float)));
  };
  const auto set_scales = [&](int u, const Rows& at) {
    const int row = static_cast<int>(u * kStep);
    const int other = other_row(row);
    if constexpr (Source::kScaled) {
      granule[u].SetScales(
          table, Source::Rounding::Of(w.round_to), reinterpret_cast<const float*>(at.At(row)),
          reinterpret_cast<const float*>(at.At(other)), scales.layout, other != row);
    }
  };
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) set_scales(u, scales_at(0));
  for (int64_t n = 0; n < cols; n += kGranule) {
    ahead.Ask<kLines>();
    Rows next_scales = scales_at(Min(n + kGranule, cols - kGranule));
    next_scales.Step(0);
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u) {
      const int row = static_cast<int>(u * kStep);
      granule[u].SetCodes(code_rows.At(row), code_rows.At(other_row(row)));
    }
    code_rows.Step(Source::Bytes(kGranule));
#pragma GCC unroll 16
    for (int p = 0; p < kPlaces; p += kHeld) {
      float* at = sums + n + p * kVL;
      VecF acc[kHeld][kRows];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
        for (int i = 0; i < kHeld; ++i) {
          acc[i][m] = first ? VecF{} : Load(at + m * pitch + i * kVL);
        }
      }
#pragma GCC unroll 8
      for (int u = 0; u < kUnits; ++u) {
        VecF columns[kHeld];
#pragma GCC unroll 2
        for (int i = 0; i < kHeld; ++i) columns[i] = granule[u].At(p + i);
        if (p + kHeld == kPlaces) set_scales(u, next_scales);  // in parallel with these products
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
          for (int i = 0; i < kHeld; ++i) {
            const Unit* const from = i == 0 ? a : a_again;
            acc[i][m] = kHolds ? Policy::StepLanes(acc[i][m], held[u], columns[i])
                               : Policy::Step(acc[i][m], from[u * kRows + m], columns[i]);
          }
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
        for (int i = 0; i < kHeld; ++i) Store(at + m * pitch + i * kVL, acc[i][m]);
      }
    }
  }
}

/// The remaining rows of w, for one row of dy: handling all cases would add a quarter to the code.
template <typename Policy, typename Source>
__attribute__((noinline)) static void LastUnit(const RowSource& w, int64_t k, int64_t k1,
                                               int64_t n0, int64_t cols, float* scratch,
                                               const Unit* a, float* sums, bool first) {
  DirectDot<Policy, Source, 1, 1>(w, k, k1, n0, cols, scratch, a, sums, cols, first);
}

/// sums [kRows, cols] = a · w over rows [k0, k0 + kc) of w.
template <typename Policy, typename Source, int kRows>
static void DirectDotBlock(const RowSource& w, int64_t k0, int64_t kc, int64_t n0, int64_t cols,
                           const Unit* a, float* sums, int64_t pitch) {
  constexpr int kUnits = kDirectUnits<Policy::kPairs>;
  constexpr int64_t kStep = Policy::kPairs ? 2 : 1;
  // The task of one row of dy is the widest (DirectDotColumns).
  static_assert(kDirectBytes / 4 >= kDirectCols);
  constexpr int64_t kMostGranules = kDirectBytes / 4 / kGranule + 1;
  constexpr bool kOne = Source::kKind == Granules::kOne || !Source::kScaled;
  alignas(64) float
      scratch[kOne ? kUnits * kStep * kMostGranules : FactorScratch(kUnits * kStep, kMostGranules)];
  int64_t k = k0;
  for (; k + kUnits * kStep <= k0 + kc; k += kUnits * kStep, a += kUnits * kRows) {
    for (int64_t i = 0; Source::kKind == Granules::kOne && i < kUnits * kStep; ++i) {
      if (k + kDirectAhead + i >= w.rows) break;
      PrefetchScales(*w.quant, (k + kDirectAhead + i) * w.cols + n0, cols);
    }
    DirectDot<Policy, Source, kRows, kUnits>(w, k, k0 + kc, n0, cols, scratch, a, sums, pitch,
                                             k == k0);
  }
  for (; k < k0 + kc; k += kStep, a += kRows) {
    for (int m = 0; m < kRows; ++m) {
      LastUnit<Policy, Source>(w, k, k0 + kc, n0, cols, scratch, a + m, sums + m * pitch, k == k0);
    }
  }
}

/// Are rows of w decoded to values before they are multiplied?
LOWRANK_INLINE bool DecodesRows(const RowSource& w) {
  return w.quant != nullptr && w.quant->planar() && !SpreadsColumns(w);
}

/// The same for weights whose columns are not spread: a few rows at a time are decoded to f32, a
/// piece of their columns after another.
template <typename Policy, int kRows>
static void DecodedDotBlock(const RowSource& w, int64_t k0, int64_t kc, int64_t n0, int64_t cols,
                            const Unit* a, float* sums, int64_t pitch) {
  using Source = DirectDecoded<Policy::kPairs>;
  constexpr int kUnits = kDirectUnits<Policy::kPairs>;
  constexpr int64_t kStep = Policy::kPairs ? 2 : 1;
  constexpr int64_t kTogether = kUnits * kStep;
  constexpr int64_t kPiece = kPlaneRun;  // columns: with kTogether rows in L1
  alignas(64) float decoded[kTogether][kPiece];
  RowSource unrounded = w;
  if (Policy::kPairs) unrounded.round_to = DType::kF32;
  TensorView view;
  view.data = decoded;
  view.rows = kTogether;
  view.cols = kPiece;
  view.dtype = DType::kF32;
  const RowSource values = DenseRows(view);
  for (int64_t k = k0; k < k0 + kc; k += kTogether, a += kUnits * kRows) {
    const int64_t rows = Min(kTogether, k0 + kc - k);
    for (int64_t n = 0; n < cols; n += kPiece) {
      const int64_t piece = Min(kPiece, cols - n);
      for (int64_t i = 0; i < rows; ++i) {
        PrefetchRow(w, k + kTogether + i, n0 + n, piece);
        RowAsFloat(unrounded, k + i, n0 + n, piece, decoded[i]);
      }
      if (rows == kTogether) {
        DirectDot<Policy, Source, kRows, kUnits>(values, 0, rows, 0, piece, nullptr, a, sums + n,
                                                 pitch, k == k0);
        continue;
      }
      const Unit* unit = a;
      for (int64_t i = 0; i < rows; i += kStep, unit += kRows) {
        for (int m = 0; m < kRows; ++m) {
          LastUnit<Policy, Source>(values, i, rows, 0, piece, nullptr, unit + m,
                                   sums + n + m * pitch, k == k0 && i == 0);
        }
      }
    }
  }
}

using DirectDotFn = void (*)(const RowSource& w, int64_t k0, int64_t kc, int64_t n0, int64_t cols,
                             const Unit* a, float* sums, int64_t pitch);

template <typename Policy, typename Source,
          int kRows = Source::kScaled ? kDirectCodeRows : kDirectRows>
LOWRANK_INLINE DirectDotFn PickDirectDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickDirectDot<Policy, Source, kRows - 1>(rows);
  }
  return DirectDotBlock<Policy, Source, kRows>;
}

template <typename Policy, int kRows = kDirectCodeRows>
LOWRANK_INLINE DirectDotFn PickDecodedDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickDecodedDot<Policy, kRows - 1>(rows);
  }
  return DecodedDotBlock<Policy, kRows>;
}

template <typename Policy>
LOWRANK_INLINE DirectDotFn PickDirectDot(int64_t rows, const RowSource& w) {
  constexpr bool kPairs = Policy::kPairs;
  if constexpr (Policy::kTiles) return nullptr;  // no route
  if (DecodesRows(w)) return PickDecodedDot<Policy>(rows);
  if (w.dense == nullptr) {
    return WithGranules(GranulesOf(w), [&](auto kind) {
      return WithTableRounding<Policy::kPairs, kind()>(w.round_to, [&](auto rounding) {
        return PickDirectDot<Policy, DirectCodes<kPairs, kind(), decltype(rounding)>>(rows);
      });
    });
  }
  if constexpr (!kPairs) {
    if (w.dense->dtype == DType::kF32) {
      return PickDirectDot<Policy, DirectValues<kPairs, DType::kF32>>(rows);
    }
    if (w.dense->dtype == DType::kF16) {
      return PickDirectDot<Policy, DirectValues<kPairs, DType::kF16>, kDirectHalfRows>(rows);
    }
  }
  return PickDirectDot<Policy, DirectValues<kPairs, DType::kBF16>>(rows);
}

/// The widest block of columns whose sums fit L1: rows of w are then read in long pieces. For the
/// same reason a thread has one task (two threads, one row of dy: pieces of 1 KiB instead of 256
/// bytes took 0.65 of the time).
LOWRANK_INLINE int64_t DirectDotColumns(int64_t rows) {
  return Max(kDirectBytes / (rows * 4) / kGranule * kGranule, kDirectCols);
}

/// Distance between rows of sums: they are spread evenly over 4 KiB, because a load waits for an
/// earlier store with the same address modulo 4 KiB (two rows of dy took a tenth longer one line
/// apart).
LOWRANK_INLINE int64_t SumsPitch(int64_t rows, int64_t cols) {
  constexpr int64_t kPage = 4096 / 4;
  int64_t shares = 1;
  while (shares < rows) shares *= 2;
  return rows == 1 ? cols : CeilDiv(cols, kPage) * kPage + kPage / shares;
}

/// c [m1 - m0, n1 - n0] = dy · w over the whole summation index, for Route::kDirectDots, whose
/// chunk has all the block's rows; columns in the order of lanes.
template <typename Policy>
LOWRANK_INLINE void AccumulateDirectDots(Run& run, const PackedChunk& chunk, const RowSource& w,
                                         const Block& block, float* c) {
  const DirectDotFn kernel = PickDirectDot<Policy>(chunk.rows, w);
  const int64_t cols = block.n1 - block.n0;
  const int64_t pitch = SumsPitch(chunk.rows, cols);
  float* sums = run.Get<float>(kBSlot, chunk.rows * pitch);
  if (sums == nullptr) return;
  for (int64_t k0 = 0; k0 < w.rows && !run.Stopped(); k0 += kKC) {
    const int64_t kc = Min(kKC, w.rows - k0);
    kernel(w, k0, kc, block.n0, cols, chunk.At<Policy>(k0, 0, chunk.rows), sums, pitch);
    for (int64_t m = 0; m < chunk.rows; ++m) {
      float* to = c + m * block.ldc();
      const float* from = sums + m * pitch;
      for (int64_t i = 0; i < cols; i += kVL) {
        Store(to + i, k0 == 0 ? Load(from + i) : Load(to + i) + Load(from + i));
      }
    }
  }
}

/// The sums of every block of the summation index, [block][m][column] in the order of lanes. They
/// are added in the order of blocks, whichever thread computed them.
struct BlockSums {
  float* data = nullptr;
  int64_t blocks = 0;
  int64_t rows = 0;
  int64_t pitch = 0;

  float* At(int64_t block) const { return data + block * rows * pitch; }
  /// c [m1 - m0, n1 - n0] of a block of columns.
  void AddTo(const Block& block, float* c) const {
    for (int64_t m = 0; m < rows; ++m) {
      const float* from = data + m * pitch + block.n0;
      for (int64_t n = 0; n < block.n1 - block.n0; n += kVL) {
        VecF sum = Load(from + n);
        for (int64_t i = 1; i < blocks; ++i) sum = sum + Load(from + i * rows * pitch + n);
        Store(c + m * block.ldc() + n, sum);
      }
    }
  }
};

/// The sums of a chunk, for Route::kDirectRowSums; without data if there is no memory for them.
template <typename Policy>
LOWRANK_INLINE BlockSums SumBlocks(Run& run, const PackedChunk& chunk, const RowSource& w) {
  const DirectDotFn kernel = PickDirectDot<Policy>(chunk.rows, w);
  BlockSums sums;
  sums.blocks = CeilDiv(w.rows, kKC);
  sums.rows = chunk.rows;
  sums.pitch = SumsPitch(sums.rows, w.cols);
  sums.data = run.Get<float>(kShrinkSlot, sums.blocks * sums.rows * sums.pitch);
  if (sums.data == nullptr) return sums;
  // Each thread continues where it was, because its prefetched data is in its own cache.
  const int64_t threads = run.context.pool->threads();
  const int64_t most = CeilDiv(sums.blocks, threads);
  run.ForEach(most * threads, chunk.rows * w.cols * w.rows, [&](int64_t task) {
    const int64_t share = task % threads;
    const int64_t block = share * sums.blocks / threads + task / threads;
    if (block >= (share + 1) * sums.blocks / threads || run.Stopped()) return;
    const int64_t k0 = block * kKC;
    kernel(w, k0, Min(kKC, w.rows - k0), 0, w.cols, chunk.At<Policy>(k0, 0, chunk.rows),
           sums.At(block), sums.pitch);
  });
  return sums;
}

}  // namespace lowrank::cpu::LOWRANK_ISA
