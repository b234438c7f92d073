/// Products with `compute: 'int8'` in the panels and tiles of gemm.h: what stands in for its
/// packing.
#pragma once

#include "native/cpu/kernels/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Where a panel of columns for the matrix unit has the block of the summation index at k0
/// (gemm_int8_tiles.h).
LOWRANK_INLINE Unit* CodeColumns(const PackedChunk& chunk, int64_t k0, int64_t panel) {
  const int64_t length = Min(kDepth<Int8Policy>, chunk.order.depth - k0);
  return chunk.data + kTileRows * (chunk.panels.count * Int8Policy::Units(k0) +
                                   panel * Int8Policy::Units(length));
}

/// Quantises and packs panels [panel0, panel1) of rows that start at m0 of `x`.
LOWRANK_INLINE void PackInt8Panels(const RowSource& x, int64_t m0, int64_t panel0, int64_t panel1,
                                   const PackedChunk& chunk) {
  const int64_t depth = chunk.order.depth;
  chunk.panels.Each(panel0, panel1, [&](int64_t, int64_t m, int mr) {
    for (int64_t k0 = 0; k0 < depth; k0 += kDepth<Int8Policy>) {
      const int64_t kc = Min(kDepth<Int8Policy>, depth - k0);
      if (chunk.columns) {
        const int rows = static_cast<int>(Min(mr, chunk.rows - m));
        PackInt8Rows(x, m0 + m, rows, mr, k0, kc, CodeColumns(chunk, k0, m / kTileRows));
      } else {
        PackInt8Rows(x, m0 + m, mr, mr, k0, kc, chunk.At<Int8Policy>(k0, m, mr));
      }
    }
  });
}

}  // namespace lowrank::cpu::LOWRANK_ISA
