/// c [rows, cols] (+)= a · bᵀ for few rows of a, b dense with its rows along the summation index:
/// kVL rows of b are turned in registers and used at once, where a panel (pack.h) would be written
/// and read again for kMR rows of a.
///
///   Operands   a    [k][rows] units, as PackA leaves them · b [cols, depth] f32, bf16 or f16
///   Numerics   those of tile.h, bit for bit: products in the order of k, sums over kKC added in
///              order
///   Budget     kVL · kVL elements of b: kVL loads, kVL · log2(kVL) shuffles and kVL · rows
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

using ThinDotFn = void (*)(const TensorView& b, int64_t row0, int64_t rows, int64_t k0, int64_t kc,
                           const Unit* a, const ThinRows& c, bool first, const char* ahead);

template <DType kType, int kRows>
LOWRANK_INLINE ThinDotFn PickThinDot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickThinDot<kType, kRows - 1>(rows);
  }
  return ThinDot<kType, kRows>;
}

LOWRANK_INLINE ThinDotFn PickThinDot(int64_t rows, DType dtype) {
  if (dtype == DType::kF32) return PickThinDot<DType::kF32, kThinRows>(rows);
  if (dtype == DType::kBF16) return PickThinDot<DType::kBF16, kThinRows>(rows);
  return PickThinDot<DType::kF16, kThinRows>(rows);
}

/// Rows [n0, n1) of b times `rows` <= kThinRows rows of a, into columns n0 and up of c's rows:
/// row(m) is where column n0 of row m is, with room for whole vectors. pack_a as in Accumulate.
/// `next` is the factor after this one, of the same shape, or null.
template <typename PackAFn, typename RowFn>
LOWRANK_INLINE void AccumulateThin(Run& run, const TensorView& b, int64_t rows, int64_t n0,
                                   int64_t n1, const PackAFn& pack_a, const RowFn& row, bool first,
                                   const TensorView* next) {
  const ThinDotFn dot = PickThinDot(rows, b.dtype);
  const int64_t bytes = static_cast<int64_t>(DTypeBytes(b.dtype));
  for (int64_t k0 = 0; k0 < b.cols; k0 += kKC) {
    if (run.Stopped()) return;
    const int64_t kc = Min(kKC, b.cols - k0);
    const Unit* a = pack_a(k0, kc);
    if (a == nullptr) return;
    for (int64_t n = n0; n < n1; n += kVL) {
      const int64_t width = Min(kVL, n1 - n);
      ThinRows c;
      for (int64_t m = 0; m < kThinRows; ++m) c[m] = row(Min(m, rows - 1)) + n - n0;
      // The next block of these rows, or after the last one the next factor's.
      const char* ahead = nullptr;
      if (width == kVL && k0 + 2 * kKC <= b.cols) {
        ahead = static_cast<const char*>(b.data) + (n * b.cols + k0 + kKC) * bytes;
      } else if (width == kVL && next != nullptr) {
        ahead = static_cast<const char*>(next->data) + n * b.cols * bytes;
      }
      dot(b, n, width, k0, kc, a, c, first && k0 == 0, ahead);
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
