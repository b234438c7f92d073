/// The last steps of a sum, in f32: c += rows · columns after the base product, a tile at a time
/// while its part of c is in L1. A separate pass over c costs as much again as the adapter's
/// products at r = 16.
///
///   rows      A panels [depth][mr] of a block's row panels, one after another
///   columns   B panels [depth][nr] of its columns
///   both      in blocks of kKC of `depth`, one after another
///
/// Numerics    sums over kKC in registers, added to c one by one, as in gemm.h
#pragma once

#include "native/cpu/kernels/tile/register_tile.h"

namespace lowrank::cpu::LOWRANK_ISA {

struct LastSteps {
  int64_t depth = 0;  // 0: none
  int64_t row_count = 0;
  int64_t col_panels = 0;
  Unit* rows = nullptr;
  Unit* columns = nullptr;

  static int64_t ColumnUnits(int64_t depth, int64_t col_panels) {
    return depth / kKC * col_panels * PanelStride(kKC) + col_panels * PanelStride(depth % kKC);
  }
  Unit* RowsAt(int64_t k0, int64_t m) const {
    return rows + k0 * row_count + m * Min(kKC, depth - k0);
  }
  Unit* ColumnsAt(int64_t k0, int64_t n) const {
    return columns + k0 / kKC * col_panels * PanelStride(kKC) +
           n / kNR * PanelStride(Min(kKC, depth - k0));
  }

  /// Adds to the tile of mr rows from m and nr columns from n on, counted from the block's first.
  LOWRANK_MEMBER_INLINE void Add(int64_t m, int mr, int64_t n, int64_t nr, float* c,
                                 int64_t ldc) const {
    for (int64_t k0 = 0; k0 < depth; k0 += kKC) {
      PickTile<F32Policy>(mr, nr)({Min(kKC, depth - k0)}, RowsAt(k0, m), ColumnsAt(k0, n), c, ldc,
                                  false);
    }
  }
};

/// For a product without last steps.
struct NoLastSteps {
  template <typename... Args>
  bool operator()(const Args&...) const {
    return true;
  }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
