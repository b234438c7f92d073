/// y = x · wᵀ with `compute: 'int8'` over 4-bit weights: which kernel takes it. All of them give
/// the same bits.
#pragma once

#include "native/cpu/kernels/int8/amx_int8.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Which way the rows of a chunk meet those of `weights`; whether by the matrix unit is known.
template <typename Weights>
LOWRANK_INLINE void PlanInt8Chunk(const Weights& weights, int count, PackedChunk* chunk) {
  chunk->dots = !chunk->columns;
  for (int i = 0; i < count; ++i) {
    chunk->dots = chunk->dots && TakesInt8Dots(chunk->rows, weights[i].w);
  }
  chunk->panels = chunk->columns ? TilePanels(chunk->rows) : SplitRows(chunk->rows);
}

/// c = x · wᵀ of one block and the last steps, x packed in the chunk.
LOWRANK_INLINE void AccumulateInt8(Run& run, const Grid& grid, const Block& block,
                                   const PackedChunk& chunk, const RowSource& w,
                                   const Int8Weight& weight, const LastSteps& last, float* c) {
  if (chunk.columns || chunk.dots) {
    if constexpr (kHasTiles) {
      if (chunk.columns) AccumulateCodesByTiles<TileSession>(run, chunk, weight, block, c);
    }
    if (chunk.dots) AccumulateInt8Dots(run, chunk, weight, block, c);
    AddLastSteps(grid, block, last, c);
  } else if (WholeGranules(w)) {
    AccumulateStrips<Int8Policy>(run, grid, block, chunk.order.depth, Int8Strips{chunk, w, weight},
                                 last, c);
  } else {
    Accumulate<Int8Policy>(run, grid, block, chunk.order.depth, ChunkOf<Int8Policy>{chunk, block},
                           Int8Columns{w, weight}, c, true, last);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
