/// `compute: 'int8'` over 4-bit weights for few rows of x: kVL rows of w at a time, whose codes are
/// transposed in registers, looked up and multiplied there.
///
///   w        rows of codes as stored, each from start to end
///   x        one A panel of pack_int8.h
///
/// Numerics   those of tile_int8.h, bit for bit: the products of a block are exact, their sum is
///            scaled and added block by block
/// Budget     VNNI, kVL rows by a block of 64: 32 loads of 16 bytes, 24 of them inserts, 16
///            shuffles, 8 shifts, 16 look-ups (without VBMI also 16 masks), and per row of x 16
///            products with their loads, 4 operations to scale and add. On a core of 2 x 512 bits
///            one row takes 60 cycles, as memory does, and each further row of x 9 to 13
#pragma once

#include "native/cpu/kernels/dot/row_dot.h"
#include "native/cpu/kernels/int8/int8_panels.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x next to the rows of w that are transposed. Products of two instructions need more
// registers, so there panels are faster from three rows on.
constexpr int kInt8DotRows = kCodesPerUnit == 4 ? kMR : 2;
// Prefetch distance in bytes of a row of codes; past its end, in the row that takes its place next.
constexpr int64_t kCodesAhead = 1024;

/// c[m][lane] (+)= a number of blocks of kVL rows of w, which are row_bytes apart, times those of
/// x. `scales` are those of w, [block][lane]. From block `near` on the prefetched data is in other
/// rows.
template <int kRows>
static void Int8Dot(VecU table, const uint8_t* codes, int64_t row_bytes, int64_t blocks,
                    int64_t near, const float* scales, const float* x, float* c, int64_t ldc,
                    bool first) {
  RowCursor rows(codes, row_bytes);
  VecF sums[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) sums[m] = first ? VecF{} : Load(c + m * ldc);
  for (int64_t b = 0; b < blocks; ++b, scales += kVL) {
    if (b % 2 == 0) AskRows(rows, kCodesAhead + (b < near ? 0 : (kVL - 1) * row_bytes));
    VecI acc[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) acc[m] = SplatCodes(x + kCodeUnits * kRows + m);
    TurnBlock(rows, table, [&](VecU unit) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        acc[m] = DotCodes(acc[m], reinterpret_cast<VecI>(unit), SplatCodes(x + m));
      }
      x += kRows;
    });
    const VecF w_scale = Load(scales);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const VecF scale = Splat(x[kRows + m]) * w_scale;
      sums[m] = sums[m] + __builtin_convertvector(acc[m], VecF) * scale;
    }
    x += 2 * kRows;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) Store(c + m * ldc, sums[m]);
}

using Int8DotFn = void (*)(VecU table, const uint8_t* codes, int64_t row_bytes, int64_t blocks,
                           int64_t near, const float* scales, const float* x, float* c, int64_t ldc,
                           bool first);

template <int kRows = kInt8DotRows>
LOWRANK_INLINE Int8DotFn PickInt8Dot(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickInt8Dot<kRows - 1>(rows);
  }
  return Int8Dot<kRows>;
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over the whole summation index, for Route::kCodeDots, whose chunk,
/// one panel, has all the block's rows.
LOWRANK_INLINE void AccumulateInt8Dots(Run& run, const PackedChunk& chunk, const Int8Weight& weight,
                                       const Block& block, float* c) {
  const QuantView& w = *weight.w;
  const Int8DotFn dot = PickInt8Dot(chunk.rows);
  alignas(64) float scales[kSpan / kInt8Block * kVL];
  alignas(64) float last[kInt8DotRows * kVL];
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kVL) {
    // If fewer columns are left, the last kVL ones are computed again.
    const int64_t left = Min(kVL, block.n1 - n);
    const int64_t row = n + left - kVL;
    float* to = left < kVL ? last : c + n - block.n0;
    const int64_t ldc = left < kVL ? kVL : block.ldc();
    for (int64_t k0 = 0; k0 < w.cols; k0 += kSpan) {
      const int64_t span = Min(kSpan, w.cols - k0);
      TurnScales(weight, row, k0, span, scales, kVL);
      AskScales(w, row, kVL, kVL, kVL, k0, span);
      dot(weight.table, w.codes + (row * w.cols + k0) / 2, w.cols / 2, span / kInt8Block,
          (w.cols - k0 - 2 * kCodesAhead) / kInt8Block, scales, chunk.At<Int8Policy>(k0, 0, 0), to,
          ldc, k0 == 0);
    }
    for (int64_t m = 0; m < chunk.rows && left < kVL; ++m) {
      std::memcpy(c + m * block.ldc() + n - block.n0, last + (m + 1) * kVL - left,
                  static_cast<size_t>(left) * sizeof(float));
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
