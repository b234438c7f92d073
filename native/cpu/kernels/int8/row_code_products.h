/// Products of rowwise weights by their codes, as row_codes.h defines them, with the kernel for the
/// number of rows of x. With few rows both operands are read as they are stored, along k; with
/// more, x is multiplied by panels of w.
///
/// Layout     rows of w as stored; for few rows, rows of x one after another, CodePitch apart
/// Scratch    few rows: none, since sums of kDotWeights rows of w with up to kCodeDotRows of x are
///            in registers; more rows: strips.h, gemm.h
/// Budget     VNNI, few rows: a step of 64 places of four rows of w and six of x is 24 products in
///            24 cycles (Zen 4), with ten loads, of which four come from memory and six from L1 or
///            L2
#pragma once

#include "native/cpu/kernels/int8/row_codes.h"
#include "native/cpu/kernels/tile/dense_strips.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of w and of x whose sums are in registers.
constexpr int kDotWeights = 4;
constexpr int kCodeDotRows = kRegisters == 32 ? 6 : 2;

LOWRANK_INLINE RowPanels CodeDotPasses(int64_t rows) {
  return {rows, Max(CeilDiv(rows, kCodeDotRows), 1)};
}

/// c[m][n] = the sums of kDotWeights rows of w, of which `rows` exist, with kRows of x.
template <int kRows>
static void CodeDots(const uint8_t* w, int rows, int64_t depth, const UnitCode* x, float* c,
                     int64_t ldc) {
  const int64_t pitch = CodePitch(depth);
  const uint8_t* row[kDotWeights];
#pragma GCC unroll 4
  for (int r = 0; r < kDotWeights; ++r) row[r] = w + Min(r, rows - 1) * depth;
  VecI acc[kRows][kDotWeights] = {};
  const auto add = [&](const VecI(&codes)[kDotWeights], int64_t k) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const VecI units = reinterpret_cast<VecI>(LoadU(x + i * pitch + k));
#pragma GCC unroll 4
      for (int r = 0; r < kDotWeights; ++r) acc[i][r] = DotCodes(acc[i][r], codes[r], units);
    }
  };
  int64_t k = 0;
  for (; k + kStepCodes <= depth; k += kStepCodes) {
    VecI codes[kDotWeights];
#pragma GCC unroll 4
    for (int r = 0; r < kDotWeights; ++r) {
      __builtin_prefetch(row[r] + k + kDotWeights * depth, 0, 2);
      codes[r] = LoadCodes(row[r] + k);
    }
    add(codes, k);
  }
  if (k < depth) {
    VecI codes[kDotWeights];
    for (int r = 0; r < kDotWeights; ++r) {
      uint8_t last[kStepCodes] = {};
      std::memcpy(last, row[r] + k, static_cast<size_t>(depth - k));
      codes[r] = LoadCodes(last);
    }
    add(codes, k);
  }
  for (int i = 0; i < kRows; ++i) {
    for (int r = 0; r < rows; ++r) {
      const int32_t sum = SumLanes(acc[i][r]);
      std::memcpy(c + i * ldc + r, &sum, 4);
    }
  }
}

template <int kRows>
LOWRANK_INLINE auto PickCodeDots(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickCodeDots<kRows - 1>(rows);
  }
  return CodeDots<kRows>;
}

/// c [m1 - m0, n1 - n0], sums of codes, for a chunk packed for dots that has all the block's rows.
LOWRANK_INLINE void AccumulateCodeDots(Run& run, const PackedChunk& chunk, const RowSource& w,
                                       const Block& block, float* c) {
  const int64_t depth = chunk.order.depth;
  const UnitCode* x = reinterpret_cast<const UnitCode*>(chunk.data);
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kDotWeights) {
    const int rows = static_cast<int>(Min(kDotWeights, block.n1 - n));
    const uint8_t* codes = w.quant->codes + n * depth;
    chunk.panels.Each(0, chunk.panels.count, [&](int64_t, int64_t m, int mr) {
      PickCodeDots<kCodeDotRows>(mr)(codes, rows, depth, x + m * CodePitch(depth),
                                     c + m * block.ldc() + n - block.n0, block.ldc());
    });
  }
}

// Up to this many rows of x, w is multiplied as stored; for more it is transposed, in parallel with
// tiles or in one pass before them. Zen 5, 4096 x 4096: 16 rows 0.9 ms instead of 1.2, 24 rows 1.5
// and 1.3; in one pass 32 rows 1.8 and 2.0, 48 rows 2.6 and 2.5.
constexpr int64_t kMostCodeDotRows = 18;
constexpr int64_t kMostCodeDotRowsPacked = 48;

/// c = x · wᵀ over the whole summation index, and the last steps.
LOWRANK_INLINE void AccumulateRowCodes(Run& run, const Grid& grid, const Block& block,
                                       const PackedChunk& chunk, Route route, const RowSource& w,
                                       const LastSteps& last, float* c) {
  if (route == Route::kRowCodeDots) {
    AccumulateCodeDots(run, chunk, w, block, c);
  } else {
    AccumulateDenseRows<RowCodePolicy>(run, grid, block, chunk, w, RowCodeColumns{w},
                                       route == Route::kRowCodeStrips, LastSteps{}, c);
  }
  if (run.Stopped()) return;
  ScaleSums(chunk, w, block, c);
  AddLastSteps(grid, block, last, c);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
