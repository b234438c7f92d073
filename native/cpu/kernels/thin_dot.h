/// c [rows, cols] (+)= a · bᵀ or a · b for few rows of a, b a dense factor that is taken as it lies
/// in memory, where a panel (pack.h) would be written and read again for kMR rows of a. kVL rows of
/// bᵀ are turned in registers and used at once.
///
///   Operands   a    [k][rows] units, as PackA leaves them
///              b    bᵀ [cols, depth] or b [depth, cols], f32, bf16 or f16
///   Numerics   those of tile.h, bit for bit: products in the order of k, sums over kKC added in
///              order
///   Budget     kVL · kVL elements of bᵀ: kVL loads, kVL · log2(kVL) shuffles and kVL · rows
///              multiply-adds, one after another for a row: 64 cycles of both at kVL = 16. By
///              RowCursor 32 shuffles and 48 cycles, and two bf16 are turned as one unit: 36
///              cycles. Factors in f32 then come too slowly from L3 (docs/performance-log.md)
#pragma once

#include "native/cpu/kernels/base_set.h"
#include "native/cpu/kernels/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// More rows of a are worth a panel.
constexpr int kThinRows = kMR < 4 ? kMR : 4;

/// Where column n0 of each row of c is; whole vectors are written.
using ThinRows = float* [kThinRows];

/// The sums of kVL columns.
template <int kRows>
struct ThinSums {
  VecF acc[kRows] = {};

  LOWRANK_MEMBER_INLINE void Step(const Unit* a, VecF b) {
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) acc[m] = Fma(Splat(a[m]), b, acc[m]);
  }
  LOWRANK_MEMBER_INLINE void AddTo(float* const* c, int64_t n, bool first) const {
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      Store(c[m] + n, first ? acc[m] : Load(c[m] + n) + acc[m]);
    }
  }
};

/// Are rows of kType turned by RowCursor? Where shuffles are dear, on Intel's processors, and those
/// that it was measured on have tiles.
template <DType kType>
constexpr bool kTurnsQuarters = kHasTiles && kType != DType::kF16;

/// The steps of the next 16 bytes of each row.
template <DType kType, int kRows>
LOWRANK_INLINE void QuarterSteps(const RowCursor& rows, const Unit* a, ThinSums<kRows>& sums) {
  VecF r[4];
  rows.LoadTransposed(r);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    if constexpr (kType == DType::kF32) {
      sums.Step(a + j * kRows, r[j]);
    } else {
      sums.Step(a + 2 * j * kRows, AsFloat(Bits(r[j]) << 16));
      sums.Step(a + (2 * j + 1) * kRows, AsFloat(Bits(r[j]) & 0xffff0000u));
    }
  }
}

/// Columns of c are rows of b.
template <DType kType, int kRows>
static void ThinDot(const ThinPart& part, float* const* c) {
  constexpr int64_t kBytes = kType == DType::kF32 ? 4 : 2;
  const TensorView& b = part.b;
  const Unit* a = part.a;
  const int64_t kc = part.kc;
  for (int64_t n = part.n0; n < part.n1; n += kVL) {
    const int64_t rows = Min(kVL, part.n1 - n);
    ThinSums<kRows> sums;
    int64_t k = 0;
    if (kTurnsQuarters<kType> && rows == kVL) {
      constexpr int64_t kStep = 16 / kBytes;
      const char* src = static_cast<const char*>(b.data) + (n * b.cols + part.k0) * kBytes;
      RowCursor cursor(src, b.cols * kBytes);
      for (; k + kStep <= kc; k += kStep) {
        if (part.ahead != 0 && k % (4 * kStep) == 0) cursor.Ask(part.ahead);
        QuarterSteps<kType>(cursor, a + k * kRows, sums);
        cursor.Step(16);
      }
    }
    for (; k + kVL <= kc; k += kVL) {
      VecF r[kVL];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kVL; ++i) {
        const int64_t at = (n + Min(i, rows - 1)) * b.cols + part.k0 + k;
        r[i] = LoadWide(b.data, kType, at);
        if (part.ahead == 0 || rows < kVL) continue;
        __builtin_prefetch(static_cast<const char*>(b.data) + at * kBytes + part.ahead, 0, 2);
      }
      Transpose(r);
#pragma GCC unroll 16
      for (int j = 0; j < kVL; ++j) sums.Step(a + (k + j) * kRows, r[j]);
    }
    for (; k < kc; ++k) {
      VecF column = {};
      for (int64_t i = 0; i < rows; ++i) {
        column[i] = ScalarWiden(b.data, kType, (n + i) * b.cols + part.k0 + k);
      }
      sums.Step(a + k * kRows, column);
    }
    sums.AddTo(c, n - part.n0, part.first);
  }
}

/// Columns of c are columns of b.
template <DType kType, int kRows>
static void ThinColumns(const ThinPart& part, float* const* c) {
  constexpr int64_t kBytes = kType == DType::kF32 ? 4 : 2;
  const TensorView& b = part.b;
  for (int64_t n = part.n0; n < part.n1; n += kVL) {
    const int64_t cols = Min(kVL, part.n1 - n);
    ThinSums<kRows> sums;
    for (int64_t k = 0; k < part.kc; ++k) {
      const int64_t at = (part.k0 + k) * b.cols + n;
      VecF row = {};
      if (part.ahead != 0) {
        __builtin_prefetch(static_cast<const char*>(b.data) + at * kBytes + part.ahead, 0, 2);
      }
      if (cols == kVL) {
        row = LoadWide(b.data, kType, at);
      } else {
        for (int64_t i = 0; i < cols; ++i) row[i] = ScalarWiden(b.data, kType, at + i);
      }
      sums.Step(part.a + k * kRows, row);
    }
    sums.AddTo(c, n - part.n0, part.first);
  }
}

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

/// Sets with tiles turn rows in another way than their base.
static ThinDotFn FindThinDot(bool transposed, int64_t rows, DType dtype) {
  if constexpr (kHasBase && !kHasTiles) {
    return Base().tiles.thin_dot(transposed, rows, dtype);
  } else {
    return transposed ? PickThinDot<true>(rows, dtype) : PickThinDot<false>(rows, dtype);
  }
}

/// `rows` <= kThinRows rows of a, from row m0 on, times columns [n0, n1) of bᵀ (kTransposed) or b,
/// into columns n0 and up of c's rows, which have room for whole vectors. `next` is the factor
/// after this one, of the same shape, or null: the end of this one is read beside asking for the
/// beginning of that one.
template <bool kTransposed>
static void AccumulateThinRows(Run& run, const RowSource& a, int64_t m0, int64_t rows,
                               const TensorView& b, int64_t n0, int64_t n1, const ThinRows& c,
                               bool first, const TensorView* next) {
  const ThinDotFn dot = FindThinDot(kTransposed, rows, b.dtype);
  const int64_t depth = kTransposed ? b.cols : b.rows;
  const int64_t step_bytes = (kTransposed ? 1 : b.cols) * static_cast<int64_t>(DTypeBytes(b.dtype));
  Unit* packed = run.Get<Unit>(kASlot, rows * kKC);
  if (packed == nullptr) return;
  for (int64_t k0 = 0; k0 < depth; k0 += kKC) {
    if (run.Stopped()) return;
    const int64_t kc = Min(kKC, depth - k0);
    PackA<F32Policy>(a, m0, static_cast<int>(rows), k0, kc, packed);
    int64_t ahead = 0;
    if (k0 + 2 * kc <= depth) {
      ahead = kc * step_bytes;
    } else if (next != nullptr) {
      ahead = reinterpret_cast<intptr_t>(next->data) - reinterpret_cast<intptr_t>(b.data) -
              k0 * step_bytes;
    }
    dot({b, n0, n1, k0, kc, packed, first && k0 == 0, ahead}, c);
  }
}

/// The same: row(m) is where column n0 of row m is.
template <bool kTransposed, typename RowFn>
LOWRANK_INLINE void AccumulateThin(Run& run, const RowSource& a, int64_t m0, int64_t rows,
                                   const TensorView& b, int64_t n0, int64_t n1, const RowFn& row,
                                   bool first, const TensorView* next = nullptr) {
  ThinRows c;
  for (int64_t m = 0; m < kThinRows; ++m) c[m] = row(Min(m, rows - 1));
  AccumulateThinRows<kTransposed>(run, a, m0, rows, b, n0, n1, c, first, next);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
