/// y = x · wᵀ for few rows of x over a dense w: kVL rows of w at a time, transposed in registers
/// and multiplied there. If not all rows of x fit in registers next to them, the first rows do; the
/// transposed units are also stored, a block of kKC in L1, from which tiles serve the other rows.
///
///   w        [N, K] row-major in f32, bf16 or f16: each row from start to end
///   x        A panels in the natural order (pack.h), one per pass
///   stored   [unit][kNR rows of w], units of one block
///
/// Panels of all columns of a task would be written once and read once, and a block of them has kKC
/// columns of many rows: reading memory in pieces of 512 bytes halves the bandwidth.
///
/// Numerics   those of register_tile.h, bit for bit: products in the order of k, sums over kKC in
///            order
/// Budget     kVL² units: kVL loads, 4 · kVL shuffles, and per row of x kVL products and loads.
///            On cores of 2 x 512 bits f32 takes 70 cycles for one row, 90 for six (dependent sums,
///            4 cycles per product), then 8 per row, while memory takes 100
#pragma once

#include "native/cpu/kernels/decode/granule.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x next to the rows of w that are transposed. Many rows of x spill those of w, which costs
// less than storing and loading all of them.
constexpr int kDensePass = kRegisters == 32 ? kMR : 3;
// For more rows: as many as fit next to the transpose without taking longer.
constexpr int kStoringPass = kRegisters == 32 ? 6 : 3;
// For yet more rows, strips (dense_strips.h) or panels of many columns are as fast.
constexpr int64_t kDenseDotRows = 3 * kMR;
// Rows of x from which a pass is bound by loads. With fewer it is bound by memory, and loading
// twice has been faster.
constexpr int kLoadedOnce = 8;
// Prefetch distance in bytes within a row of w; past its end, in the row that takes its place next.
constexpr int64_t kDenseAhead = 1024;

/// Keeps the compiler from loading the value twice, once for each half of a shuffle.
LOWRANK_INLINE void OneLoad(VecF& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#else
  (void)v;
#endif
}

/// kVL units from a row of w.
template <typename Policy, DType kStored>
LOWRANK_INLINE VecF LoadUnits(const char* row) {
  if constexpr (Policy::kPairs) return Load(row);
  return LoadWide(row, kStored, 0);
}

/// c[m][lane] (+)= units [u0, u1), whole blocks, of kVL rows of w that start at `rows` and are
/// row_bytes long, times those of x. With kStores it also stores the transposed units of its single
/// block.
template <typename Policy, DType kStored, int kRows, bool kStores>
static void DenseDot(const char* rows, int64_t row_bytes, int64_t u0, int64_t u1, const Unit* x,
                     float* c, int64_t ldc, Unit* stored) {
  constexpr int64_t kUnitBytes = Policy::kPairs || kStored == DType::kF32 ? 4 : 2;
  constexpr bool kOneLoad = kRows >= kLoadedOnce && (Policy::kPairs || kStored == DType::kF32);
  // From here on the prefetched data is in the rows after these.
  const int64_t near = u1 - kDenseAhead / kUnitBytes;
  // Kept, in memory if necessary: otherwise GCC computes the addresses anew at each step.
  const char* w[kVL];
#pragma GCC unroll 16
  for (int i = 0; i < kVL; ++i) {
    w[i] = rows + i * row_bytes;
    asm("" : "+g"(w[i]));
  }
  for (int64_t block = u0; block < u1; block += Policy::Units(kKC)) {
    const int64_t end = Min(block + Policy::Units(kKC), u1);
    VecF acc[kRows] = {};
    for (int64_t u = block; u < end; u += kVL, x += kVL * kRows) {
      const int64_t ahead = kDenseAhead + (u < near ? 0 : (kVL - 1) * row_bytes);
      VecF r[kVL];
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) {
        const char* row = w[i] + u * kUnitBytes;
        if (!kStores) __builtin_prefetch(row + ahead, 0, 2);
        r[i] = LoadUnits<Policy, kStored>(row);
        if constexpr (kOneLoad) OneLoad(r[i]);
      }
      Transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) {
        if constexpr (kStores) Store(stored + i * kNR, r[i]);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) acc[m] = Policy::Step(acc[m], x[i * kRows + m], r[i]);
      }
      if constexpr (kStores) stored += kVL * kNR;
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      float* to = c + m * ldc;
      Store(to, block == 0 ? acc[m] : Load(to) + acc[m]);
    }
  }
}

using DenseDotFn = void (*)(const char* rows, int64_t row_bytes, int64_t u0, int64_t u1,
                            const Unit* x, float* c, int64_t ldc, Unit* stored);

template <typename Policy, DType kStored, bool kStores,
          int kRows = kStores ? kStoringPass : kDensePass>
LOWRANK_INLINE DenseDotFn PickDenseDot(int64_t rows) {
  if constexpr (kRows > 1 && !kStores) {
    if (rows < kRows) return PickDenseDot<Policy, kStored, kStores, kRows - 1>(rows);
  }
  return DenseDot<Policy, kStored, kRows, kStores>;
}

template <typename Policy, bool kStores>
LOWRANK_INLINE DenseDotFn PickDenseDot(int64_t rows, DType stored) {
  if constexpr (Policy::kPairs) {
    return PickDenseDot<Policy, DType::kBF16, kStores>(rows);
  } else {
    if (stored == DType::kBF16) return PickDenseDot<Policy, DType::kBF16, kStores>(rows);
    if (stored == DType::kF16) return PickDenseDot<Policy, DType::kF16, kStores>(rows);
    return PickDenseDot<Policy, DType::kF32, kStores>(rows);
  }
}

/// Prefetches rows of w, one or two lines with each unit of a tile: one piece after another of the
/// rows of a strip, then of the next strip's. It starts one piece ahead of the transpose, and stays
/// there.
class RowAsker {
 public:
  /// `rows` are left from the strip at `first` on.
  RowAsker(const char* first, int64_t row_bytes, int64_t rows, int64_t block_bytes,
           int64_t unit_bytes)
      : strip_(first),
        row_bytes_(row_bytes),
        block_bytes_(block_bytes),
        rows_(rows),
        lines_(kNR * unit_bytes >= 2 * kLine),
        piece_(Min(block_bytes, row_bytes)) {
    NextPiece();
  }
  /// Units per step.
  static int64_t Every(int64_t unit_bytes) { return Max(kLine / (kNR * unit_bytes), 1); }

  LOWRANK_MEMBER_INLINE void Step() {
    if (rows_ <= 0) return;
    __builtin_prefetch(line_, 0, 2);
    if (lines_) __builtin_prefetch(line_ + kLine, 0, 2);
    line_ += lines_ ? 2 * kLine : kLine;
    if (line_ < row_ + piece_) return;
    row_ += row_bytes_;
    line_ = row_;
    if (--left_ == 0) NextPiece();
  }

 private:
  static constexpr int64_t kLine = 64;

  void NextPiece() {
    at_ += piece_;
    if (at_ == row_bytes_) {
      at_ = 0;
      strip_ += kNR * row_bytes_;
      rows_ -= kNR;
    }
    piece_ = Min(block_bytes_, row_bytes_ - at_);
    left_ = Min(kNR, rows_);
    row_ = strip_ + at_;
    line_ = row_;
  }

  const char* strip_;
  int64_t row_bytes_;
  int64_t block_bytes_;
  int64_t rows_;      // from this strip on
  bool lines_;        // two per step
  int64_t piece_;     // bytes
  int64_t at_ = 0;    // start of the piece within a row
  int64_t left_ = 0;  // rows left in the piece
  const char* row_ = nullptr;
  const char* line_ = nullptr;
};

/// Splits rows of x into as few passes as can hold them. If there are several, the first runs with
/// the transpose.
LOWRANK_INLINE RowPanels DenseDotPasses(int64_t rows) {
  if (rows <= kDensePass) return {rows, 1};
  return {rows, 1 + CeilDiv(rows - kStoringPass, kMR), kStoringPass};
}

/// c [all rows, kVL or kNR] of a strip of w, by one pass or several.
template <typename Policy>
class DenseStrip {
 public:
  DenseStrip(const PackedChunk& chunk, const TensorView& w)
      : chunk_(chunk),
        w_(w),
        row_bytes_(w.cols * static_cast<int64_t>(DTypeBytes(w.dtype))),
        unit_bytes_(row_bytes_ / Policy::Units(w.cols)),
        one_pass_(chunk.panels.count == 1),
        dot_(one_pass_ ? PickDenseDot<Policy, false>(chunk.rows, w.dtype)
                       : PickDenseDot<Policy, true>(kStoringPass, w.dtype)) {}

  int64_t Columns() const { return one_pass_ ? kVL : kNR; }

  void Multiply(int64_t n, float* c, int64_t ldc) {
    const char* rows = static_cast<const char*>(w_.data) + n * row_bytes_;
    const int64_t units = Policy::Units(w_.cols);
    if (one_pass_) {
      dot_(rows, row_bytes_, 0, units, chunk_.data, c, ldc, nullptr);
      return;
    }
    RowAsker asker(rows, row_bytes_, w_.rows - n, Policy::Units(kKC) * unit_bytes_, unit_bytes_);
    for (int64_t k0 = 0; k0 < w_.cols; k0 += kKC) {
      const int64_t u0 = Policy::Units(k0);
      const int64_t ku = Policy::Units(Min(kKC, w_.cols - k0));
      for (int64_t v = 0; v < kNR; v += kVL) {
        dot_(rows + v * row_bytes_, row_bytes_, u0, u0 + ku, chunk_.At<Policy>(k0, 0, 0), c + v,
             ldc, stored_ + v);
      }
      chunk_.panels.Each(1, chunk_.panels.count, [&](int64_t panel, int64_t m, int mr) {
        const Unit* x = chunk_.At<Policy>(k0, m, 0);
        if (panel == 1) {
          PickDecodingTile<Policy, kMR, RowAsker>(mr)(&asker, RowAsker::Every(unit_bytes_), {ku}, x,
                                                      stored_, c + m * ldc, ldc, k0 == 0);
        } else {
          PickTile<Policy>(mr, kNR)({ku}, x, stored_, c + m * ldc, ldc, k0 == 0);
        }
      });
    }
  }

 private:
  const PackedChunk& chunk_;
  const TensorView& w_;
  int64_t row_bytes_;
  int64_t unit_bytes_;
  bool one_pass_;
  DenseDotFn dot_;
  alignas(64) Unit stored_[kKC * kNR];
};

/// c [m1 - m0, n1 - n0] = x · wᵀ over the whole summation index, for Route::kDenseDots, whose
/// chunk, in passes, has all the block's rows.
template <typename Policy>
LOWRANK_INLINE void AccumulateDenseDots(Run& run, const PackedChunk& chunk, const RowSource& w,
                                        const Block& block, float* c) {
  DenseStrip<Policy> strip(chunk, *w.dense);
  const int64_t columns = strip.Columns();
  int64_t n = block.n0;
  for (; n + columns <= block.n1 && !run.Stopped(); n += columns) {
    strip.Multiply(n, c + n - block.n0, block.ldc());
  }
  if (n >= block.n1 || run.Stopped()) return;
  // If fewer columns are left, the last kVL ones are computed again.
  alignas(64) float sums[kDenseDotRows * kNR];
  const int64_t left = block.n1 - n;
  strip.Multiply(block.n1 - columns, sums, columns);
  for (int64_t m = 0; m < chunk.rows; ++m) {
    std::memcpy(c + m * block.ldc() + n - block.n0, sums + (m + 1) * columns - left,
                static_cast<size_t>(left) * sizeof(float));
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
