/// c [rows, cols] (+)= a · bᵀ or a · b for few rows of a, b a dense factor that is taken as it lies
/// in memory, where a panel (pack.h) would be written and read again for kMR rows of a. kVL rows of
/// bᵀ are turned in registers and used at once.
///
///   Operands   a    [k][rows] units, as PackA leaves them · bᵀ [cols, depth] or b [depth, cols],
///   f32,
///              bf16 or f16
///   Numerics   those of tile.h, bit for bit: products in the order of k, sums over kKC added in
///              order
///   Budget     kVL · kVL elements of bᵀ: kVL loads, kVL · log2(kVL) shuffles and kVL · rows
///              multiply-adds, one after another for a row: 64 cycles of both at kVL = 16
#pragma once

#include "native/cpu/kernels/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// More rows of a are worth a panel.
constexpr int kThinRows = kMR < 4 ? kMR : 4;

/// Where the rows of c are; kVL columns of each are written.
using ThinRows = float* [kThinRows];

/// Columns [row0, row0 + rows) of c, which are rows of b, over [k0, k0 + kc) of the summation
/// index. `ahead` is what will be read next, as long as these rows; null: nothing.
template <DType kType, int kRows>
static void ThinDot(const TensorView& b, int64_t row0, int64_t rows, int64_t k0, int64_t kc,
                    const Unit* a, const ThinRows& c, bool first, const char* ahead) {
  constexpr int64_t kBytes = kType == DType::kF32 ? 4 : 2;
  VecF acc[kRows] = {};
  int64_t k = 0;
  for (; k + kVL <= kc; k += kVL, a += kVL * kRows) {
    VecF r[kVL];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kVL; ++i) {
      const int64_t at = (row0 + Min(i, rows - 1)) * b.cols + k0 + k;
      r[i] = LoadWide(b.data, kType, at);
      if (ahead != nullptr) __builtin_prefetch(ahead + (i * b.cols + k) * kBytes, 0, 2);
    }
    Transpose(r);
#pragma GCC unroll 16
    for (int j = 0; j < kVL; ++j) {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) acc[m] = Fma(Splat(a[j * kRows + m]), r[j], acc[m]);
    }
  }
  for (; k < kc; ++k, a += kRows) {
    VecF column = {};
    for (int64_t i = 0; i < rows; ++i) {
      column[i] = ScalarWiden(b.data, kType, (row0 + i) * b.cols + k0 + k);
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) acc[m] = Fma(Splat(a[m]), column, acc[m]);
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) Store(c[m], first ? acc[m] : Load(c[m]) + acc[m]);
}

/// The same over b itself: columns [n0, n0 + cols) of it, cols <= kVL.
template <DType kType, int kRows>
static void ThinColumns(const TensorView& b, int64_t n0, int64_t cols, int64_t k0, int64_t kc,
                        const Unit* a, const ThinRows& c, bool first, const char*) {
  VecF acc[kRows] = {};
  for (int64_t k = 0; k < kc; ++k, a += kRows) {
    const int64_t at = (k0 + k) * b.cols + n0;
    VecF row = {};
    if (cols == kVL) {
      row = LoadWide(b.data, kType, at);
    } else {
      for (int64_t n = 0; n < cols; ++n) row[n] = ScalarWiden(b.data, kType, at + n);
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) acc[m] = Fma(Splat(a[m]), row, acc[m]);
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) Store(c[m], first ? acc[m] : Load(c[m]) + acc[m]);
}

using ThinDotFn = void (*)(const TensorView& b, int64_t row0, int64_t rows, int64_t k0, int64_t kc,
                           const Unit* a, const ThinRows& c, bool first, const char* ahead);

template <bool kTransposed, DType kType, int kRows>
LOWRANK_INLINE ThinDotFn PickThinDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickThinDot<kTransposed, kType, kRows - 1>(rows);
  }
  return kTransposed ? ThinDot<kType, kRows> : ThinColumns<kType, kRows>;
}

template <bool kTransposed>
LOWRANK_INLINE ThinDotFn PickThinDot(int64_t rows, DType dtype) {
  if (dtype == DType::kF32) return PickThinDot<kTransposed, DType::kF32, kThinRows>(rows);
  if (dtype == DType::kBF16) return PickThinDot<kTransposed, DType::kBF16, kThinRows>(rows);
  return PickThinDot<kTransposed, DType::kF16, kThinRows>(rows);
}

/// `rows` <= kThinRows rows of a times columns [n0, n1) of bᵀ (kTransposed) or b, into columns n0
/// and up of c's rows: row(m) is where column n0 of row m is, with room for whole vectors. pack_a
/// as in Accumulate. `next` is the factor after this one, of the same shape, or null.
template <bool kTransposed, typename PackAFn, typename RowFn>
LOWRANK_INLINE void AccumulateThin(Run& run, const TensorView& b, int64_t rows, int64_t n0,
                                   int64_t n1, const PackAFn& pack_a, const RowFn& row, bool first,
                                   const TensorView* next) {
  const ThinDotFn dot = PickThinDot<kTransposed>(rows, b.dtype);
  const int64_t bytes = static_cast<int64_t>(DTypeBytes(b.dtype));
  const int64_t depth = kTransposed ? b.cols : b.rows;
  for (int64_t k0 = 0; k0 < depth; k0 += kKC) {
    if (run.Stopped()) return;
    const int64_t kc = Min(kKC, depth - k0);
    const Unit* a = pack_a(k0, kc);
    if (a == nullptr) return;
    for (int64_t n = n0; n < n1; n += kVL) {
      const int64_t width = Min(kVL, n1 - n);
      ThinRows c;
      for (int64_t m = 0; m < kThinRows; ++m) c[m] = row(Min(m, rows - 1)) + n - n0;
      // The next block of these rows, or after the last one the next factor's.
      const char* ahead = nullptr;
      if (!kTransposed) {
        // Rows of b are read from end to end.
      } else if (width == kVL && k0 + 2 * kKC <= b.cols) {
        ahead = static_cast<const char*>(b.data) + (n * b.cols + k0 + kKC) * bytes;
      } else if (width == kVL && next != nullptr) {
        ahead = static_cast<const char*>(next->data) + n * b.cols * bytes;
      }
      dot(b, n, width, k0, kc, a, c, first && k0 == 0, ahead);
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
