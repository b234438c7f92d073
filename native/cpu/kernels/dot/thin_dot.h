/// c [rows, cols] (+)= a · bᵀ or a · b for few rows of a, with a dense factor b that is read from
/// memory as it is. A panel (pack.h) would be written and read again for kMR rows of a. kVL rows of
/// bᵀ are transposed in registers and used at once.
///
///   Operands   a    [k][rows] units, as PackA leaves them
///              b    bᵀ [cols, depth] or b [depth, cols], f32, bf16 or f16
///   Numerics   those of register_tile.h, bit for bit: products in the order of k, sums over kKC
///              added in order
///   Budget     kVL · kVL elements of bᵀ: kVL loads, kVL · log2(kVL) shuffles and kVL · rows
///              multiply-adds, dependent within a row: 64 cycles of both at kVL = 16 (75 measured).
///              By quarters 32 shuffles, and two bf16 are transposed as one unit. From memory a
///              line takes 11 cycles of a Zen 4 at 22 GB/s, 176 for those elements in f32
#pragma once

#include "native/cpu/kernels/isa/base_set.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// For more rows of a, a panel pays.
constexpr int kThinRows = kMR < 4 ? kMR : 4;

/// The address of column n0 of each row of c; whole vectors are written.
using ThinRows = float* [kThinRows];

/// The sums for kVL columns.
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

/// Are rows of kType transposed by quarters? bf16 rows are, if that transposes two elements as one.
/// In f32 a line would be read four times, and would have left L1 in between if rows are 16 KiB
/// apart: sixteen such lines share eight ways on Zen 4 (1.6 of the time; Ice Lake takes the same
/// time both ways). Sets with tiles are for processors on which it was measured.
template <DType kType>
constexpr bool kTurnsQuarters =
    kVL == 16 && (kType == DType::kBF16 || (kHasTiles && kType == DType::kF32));

/// The addresses of fewer rows than kVL. The last row stands for the missing ones.
class SomeAddresses {
 public:
  SomeAddresses(const char* first, int64_t pitch, int64_t rows) {
    for (int64_t i = 0; i < kVL; ++i) at_[i] = first + Min(i, rows - 1) * pitch;
  }
  LOWRANK_MEMBER_INLINE const char* At(int row) const { return at_[row] + step_; }
  LOWRANK_MEMBER_INLINE void Step(int64_t bytes) { step_ += bytes; }

 private:
  const char* at_[kVL];
  int64_t step_ = 0;
};

/// Rows of b, and the data `ahead` bytes after them. The addresses advance from one kVL rows to the
/// next: computed anew for each, they cost a third of the products of r = 16.
template <DType kType, typename Addresses>
struct ThinCursor {
  static constexpr int64_t kBytes = kType == DType::kF32 ? 4 : 2;
  static constexpr int64_t kStepBytes = kTurnsQuarters<kType> ? 16 : kVL * kBytes;

  Addresses rows;
  Addresses next;

  LOWRANK_MEMBER_INLINE void Step(int64_t bytes) {
    rows.Step(bytes);
    next.Step(bytes);
  }
  /// Runs as many steps of kStepBytes as there are in kc elements. Returns how many elements those
  /// are.
  template <int kRows>
  LOWRANK_MEMBER_INLINE int64_t Steps(const Unit* a, int64_t kc, ThinSums<kRows>& sums) {
    constexpr int64_t kElements = kStepBytes / kBytes;
    const int64_t count = kc / kElements;
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (kTurnsQuarters<kType>) {
        if (i % 4 == 0) AskRows(next, 0);
        QuarterSteps(a, sums);
      } else {
        VecF r[kVL];
#pragma GCC unroll 16
        for (int n = 0; n < kVL; ++n) {
          r[n] = LoadWide(rows.At(n), kType, 0);
          __builtin_prefetch(next.At(n), 0, 2);
        }
        Transpose(r);
#pragma GCC unroll 16
        for (int j = 0; j < kVL; ++j) sums.Step(a + j * kRows, r[j]);
      }
      a += kElements * kRows;
      Step(kStepBytes);
    }
    return count * kElements;
  }

 private:
  /// The steps for the next 16 bytes of each row.
  template <int kRows>
  LOWRANK_MEMBER_INLINE void QuarterSteps(const Unit* a, ThinSums<kRows>& sums) const {
    VecF r[4];
    LoadTransposed(rows, r);
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
};

/// The sums for up to kVL columns, rows [n, n + rows) of b, with the cursor at the first.
template <DType kType, int kRows, typename Cursor>
LOWRANK_INLINE void ThinStrip(const ThinPart& part, Cursor& cursor, int64_t n, int64_t rows,
                              float* const* c) {
  const TensorView& b = part.b;
  ThinSums<kRows> sums;
  for (int64_t k = cursor.Steps(part.a, part.kc, sums); k < part.kc; ++k) {
    VecF column = {};
    for (int64_t i = 0; i < rows; ++i) {
      column[i] = ScalarWiden(b.data, kType, (n + i) * b.cols + part.k0 + k);
    }
    sums.Step(part.a + k * kRows, column);
  }
  sums.AddTo(c, n - part.n0, part.first);
}

/// Columns of c are rows of b.
template <DType kType, int kRows>
static void ThinDot(const ThinPart& part, float* const* c) {
  using Whole = ThinCursor<kType, RowAddresses<kVL>>;
  const int64_t pitch = part.b.cols * Whole::kBytes;
  const char* first =
      static_cast<const char*>(part.b.data) + part.n0 * pitch + part.k0 * Whole::kBytes;
  const int64_t stepped = part.kc * Whole::kBytes / Whole::kStepBytes * Whole::kStepBytes;
  Whole cursor = {{first, pitch}, {first + part.ahead, pitch}};
  int64_t n = part.n0;
  for (; n + kVL <= part.n1; n += kVL) {
    ThinStrip<kType, kRows>(part, cursor, n, kVL, c);
    cursor.Step(kVL * pitch - stepped);
  }
  if (n == part.n1) return;
  const int64_t rows = part.n1 - n;
  first += (n - part.n0) * pitch;
  ThinCursor<kType, SomeAddresses> last = {{first, pitch, rows}, {first + part.ahead, pitch, rows}};
  ThinStrip<kType, kRows>(part, last, n, rows, c);
}

/// Adjacent vectors of columns of c: a line of b. In bf16 both are loaded as one, split into the
/// even and the odd columns (half the loads and requests, no widening).
template <DType kType>
constexpr int kThinVectors = kType == DType::kF16 ? 1 : 2;

template <DType kType, int kVectors>
LOWRANK_INLINE void LoadColumns(const char* row, VecF (&columns)[kVectors]) {
  if constexpr (kType == DType::kBF16 && kVectors == 2) {
    const VecU pairs = LoadU(row);
    columns[0] = AsFloat(pairs << 16);
    columns[1] = AsFloat(pairs & 0xffff0000u);
  } else {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) columns[v] = LoadWide(row, kType, v * kVL);
  }
}

/// The sums of columns [n, n + cols), cols <= kVectors · kVL; exactly that many if there is more
/// than one vector.
template <DType kType, int kRows, int kVectors>
LOWRANK_INLINE void ThinColumnSums(const ThinPart& part, int64_t n, int64_t cols, float* const* c) {
  constexpr int64_t kBytes = kType == DType::kF32 ? 4 : 2;
  const int64_t pitch = part.b.cols * kBytes;
  const char* row = static_cast<const char*>(part.b.data) + part.k0 * pitch + n * kBytes;
  const char* next = row + part.ahead;
  const Unit* a = part.a;
  ThinSums<kRows> sums[kVectors];
  for (int64_t k = part.kc; k > 0; --k, row += pitch, next += pitch, a += kRows) {
    VecF columns[kVectors] = {};
#pragma GCC unroll 2
    for (int64_t at = 0; at < kVectors * kVL * kBytes; at += 64) {
      __builtin_prefetch(next + at, 0, 2);
    }
    if (kVectors > 1 || cols == kVL) {
      LoadColumns<kType>(row, columns);
    } else {
      for (int64_t i = 0; i < cols; ++i) columns[0][i] = ScalarWiden(row, kType, i);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[v].Step(a, columns[v]);
  }
  if constexpr (kType == DType::kBF16 && kVectors == 2) {
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const VecF even = sums[0].acc[m];
      const VecF odd = sums[1].acc[m];
      sums[0].acc[m] = MergeLow(even, odd);
      sums[1].acc[m] = MergeHigh(even, odd);
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) sums[v].AddTo(c, n - part.n0 + v * kVL, part.first);
}

/// Columns of c are columns of b.
template <DType kType, int kRows>
static void ThinColumns(const ThinPart& part, float* const* c) {
  constexpr int64_t kStep = kThinVectors<kType> * kVL;
  int64_t n = part.n0;
  for (; n + kStep <= part.n1; n += kStep) {
    ThinColumnSums<kType, kRows, kThinVectors<kType>>(part, n, kStep, c);
  }
  for (; n < part.n1; n += kVL) {
    ThinColumnSums<kType, kRows, 1>(part, n, Min(kVL, part.n1 - n), c);
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

/// Sets with tiles transpose rows in another way than their base.
static ThinDotFn FindThinDot(bool transposed, int64_t rows, DType dtype) {
  if constexpr (kHasBase && !kHasTiles) {
    return Base().tiles.thin_dot(transposed, rows, dtype);
  } else {
    return transposed ? PickThinDot<true>(rows, dtype) : PickThinDot<false>(rows, dtype);
  }
}

/// Multiplies `rows` <= kThinRows rows of a, from row m0 on, by columns [n0, n1) of bᵀ
/// (kTransposed) or b, into columns n0 and up of c's rows, which have room for whole vectors.
/// `next` is the factor after this one, of the same shape, or null: reading the end of this one
/// prefetches the start of that one.
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

/// The same: row(m) is the address of column n0 of row m.
template <bool kTransposed, typename RowFn>
LOWRANK_INLINE void AccumulateThin(Run& run, const RowSource& a, int64_t m0, int64_t rows,
                                   const TensorView& b, int64_t n0, int64_t n1, const RowFn& row,
                                   bool first, const TensorView* next = nullptr) {
  ThinRows c;
  for (int64_t m = 0; m < kThinRows; ++m) c[m] = row(Min(m, rows - 1));
  AccumulateThinRows<kTransposed>(run, a, m0, rows, b, n0, n1, c, first, next);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
