/// Products of rowwise weights by their codes: what row_codes.h defines, by the kernel for so many
/// rows of x.
#pragma once

#include "native/cpu/kernels/dense_strips.h"
#include "native/cpu/kernels/row_codes_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of x up to which w is multiplied as it lies: turned beside tiles, and in one go before them.
// Zen 5, 4096 x 4096: 16 rows 0.9 ms in place of 1.2, 24 rows 1.5 and 1.3; in one go 32 rows 1.8
// and 2.0, 48 rows 2.6 and 2.5.
constexpr int64_t kMostCodeDotRows = 18;
constexpr int64_t kMostCodeDotRowsPacked = 48;

LOWRANK_INLINE bool TakesCodeDots(const RowSource& w, int64_t rows_of_x) {
  const bool turns = TurnsRows<RowCodePolicy>(w, w.cols);
  return rows_of_x <= (turns ? kMostCodeDotRows : kMostCodeDotRowsPacked);
}

/// c [m1 - m0, n1 - n0], sums of codes of more rows of x.
LOWRANK_INLINE void AccumulateCodeTiles(Run& run, const Grid& grid, const Block& block,
                                        const PackedChunk& chunk, const RowSource& w, float* c) {
  using Policy = RowCodePolicy;
  const int64_t depth = chunk.order.depth;
  if constexpr (kTurnsBeside) {
    if (TakesDenseStrips<Policy>(chunk, w, block)) {
      AccumulateStrips<Policy>(run, grid, block, depth, DenseStrips<Policy>{chunk, w}, LastSteps{},
                               c);
      return;
    }
  }
  Accumulate<Policy>(run, grid, block, depth, ChunkOf<Policy>{chunk, block}, RowCodeColumns{w}, c,
                     true);
}

/// c = x · wᵀ over all of the summation index, and the last steps.
LOWRANK_INLINE void AccumulateRowCodes(Run& run, const Grid& grid, const Block& block,
                                       const PackedChunk& chunk, const RowSource& w,
                                       const LastSteps& last, float* c) {
  if (chunk.dots) {
    AccumulateCodeDots(run, chunk, w, block, c);
  } else {
    AccumulateCodeTiles(run, grid, block, chunk, w, c);
  }
  if (run.Stopped()) return;
  ScaleSums(chunk, w, block, c);
  AddLastSteps(grid, block, last, c);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
