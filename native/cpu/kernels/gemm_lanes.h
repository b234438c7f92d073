/// Blocked products in the order of lanes (sum_order.h), for more rows of x than stored_dot.h
/// takes: the panels and tiles of gemm.h, with a lane's share of a span as the block.
///
/// Scratch     B strip: all lanes of a span for kStripBytes of columns; C tile as in gemm.h
/// Numerics    as gemm.h, with lanes for blocks; the same bits as row_dot.h
#pragma once

#include "native/cpu/kernels/stored_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Half of a 1 MiB L2: the strip is read once for every row panel.
constexpr int64_t kStripBytes = 512 << 10;

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index and the last steps, for a chunk
/// that is packed by lanes. A panel of x goes through the lanes of a span one after another, so
/// that its tile of c stays in L1 while they are added up.
template <typename Policy>
LOWRANK_INLINE void AccumulateByLanes(Run& run, const Grid& grid, const Block& block,
                                      const PackedChunk& chunk, const RowSource& w,
                                      const LastSteps& last, float* c) {
  constexpr int64_t kStrip = kStripBytes / (Policy::Units(kSpan) * 4) / kNR * kNR;
  const int64_t ldc = block.ldc();
  const int64_t depth = chunk.order.depth;
  Unit* b = run.Get<Unit>(kBSlot, kStrip / kNR * kVL * PanelStride(Policy::Units(kKC)));
  if (b == nullptr) return;
  for (int64_t n0 = block.n0; n0 < block.n1; n0 += kStrip) {
    const int64_t n1 = Min(n0 + kStrip, block.n1);
    for (int64_t k0 = 0; k0 < depth && !run.Stopped(); k0 += kSpan) {
      const int64_t length = chunk.order.Length(k0);
      const int64_t ku = Policy::Units(length);
      DecodeSpan<Policy>(w, k0, length * kVL, n0, n1, b);
      grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
        float* c_row = c + (m - block.m0) * ldc - block.n0;
        for (int64_t n = n0; n < n1; n += kNR) {
          const int64_t nr = PanelWidth(n, n1);
          const TileFn tile = PickTile<Policy, kMR>(mr, nr);
          for (int l = 0; l < kVL; ++l) {
            tile(ku, chunk.At<Policy>(k0 + l * length, m, mr), LanePanel(b, n - n0, l, ku),
                 c_row + n, ldc, k0 == 0 && l == 0);
          }
          if (k0 + kSpan < depth) continue;
          last.Add(m - block.m0, mr, n - block.n0, nr, c_row + n, ldc);
        }
      });
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
